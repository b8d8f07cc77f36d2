"""Errors that are the user's to fix, and the one way every command line of the project reports them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence


class UserError(Exception):
    """Something the user can put right.

    The message says what was found, what was expected, why, and what to look at next.
    """


def run_cli(prog: str, body: Callable[[], int | None]) -> int:
    """Run `body` and turn its errors into exit codes: 0 done, 1 a `UserError`, 130 interrupted.

    A `UserError` is printed as one message without traceback, unless `--debug` is among the arguments. argparse exits
    with 2 for wrong usage by itself. A reader that closes the pipe (`… | head`) is not an error.
    """
    try:
        return body() or 0
    except UserError as e:
        if "--debug" in sys.argv:
            raise
        print(f"{prog}: {printable(str(e))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def printable(text: str) -> str:
    """`text` with control characters shown and not sent, as messages quote files that somebody else wrote."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def join_words(words: Sequence[object], last: str = "and") -> str:
    """`a, b and c`, for messages that list names."""
    items = [str(w) for w in words]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}" if items else ""
