"""A progress bar on the standard error stream, or a line now and then when that is a file."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_WIDTH = 24
_LINE_SECONDS = 30.0


class Progress:
    """`step("code, temperature 0")` for each finished piece of work out of `total`, which may change on the way."""

    def __init__(self, total: int, out: TextIO | None = None) -> None:
        self.total = total
        self.done = 0
        self.out = out or sys.stderr
        self.bar = self.out.isatty()
        self.drawn = False
        self.started = self.shown = time.monotonic()

    def step(self, what: str) -> None:
        self.done += 1
        now = time.monotonic()
        left = (now - self.started) / self.done * max(0, self.total - self.done)
        state = f"{self.done}/{self.total} {what}, {_clock(left)} left"
        if self.bar:
            filled = min(_WIDTH, _WIDTH * self.done // max(1, self.total))
            self.out.write(f"\r[{'#' * filled}{'-' * (_WIDTH - filled)}] {state}\x1b[K")
            self.out.flush()
            self.drawn = True
        elif now - self.shown >= _LINE_SECONDS:
            self.shown = now
            self.say(state)

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        self.drawn = False
        self.out.write(f"{chr(13) + chr(27) + '[K' if self.bar else ''}{line}\n")
        self.out.flush()

    def end(self) -> None:
        """What is written next has a line of its own."""
        if self.drawn:
            self.drawn = False
            self.out.write("\n")
            self.out.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
