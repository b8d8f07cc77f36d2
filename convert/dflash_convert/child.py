"""Other programs that a conversion runs: they end with it, however it ends."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


def run(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, without input, and keep what it says. Raises OSError if it cannot be run.

    As subprocess.run(), but for a signal that comes before Popen returns: that leaves a process that nobody knows.
    """
    process = None
    try:
        with _signals_held():
            process = subprocess.Popen(
                [str(word) for word in command],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        stdout, stderr = process.communicate()
    except BaseException:
        if process:
            process.kill()
            process.wait()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Signals that end the program are delivered when the block has ended."""
    came: list[int] = []
    before = {}
    try:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if number := getattr(signal, name, None):
                before[number] = signal.signal(number, lambda number, _frame: came.append(number))
    except ValueError:
        pass  # not the main thread, which gets them
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)
