"""A bar where somebody looks, a line now and then where a file does."""

from __future__ import annotations

import io

import pytest
from dflash_tools.bench import progress
from dflash_tools.bench.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """`clock[0]` is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_gets_a_bar_with_the_time_that_is_left(clock):
    out = Terminal()
    bar = Progress(4, out)
    clock[0] += 40
    bar.step("plain: code")
    assert "[######------------------] 1/4 plain: code, 2:00 left" in out.getvalue()
    for _ in range(3):
        bar.step("plain: code")
    assert "[########################] 4/4 plain: code, 0:00 left" in out.getvalue()
    bar.end()
    assert out.getvalue().endswith("left\x1b[K\n")


def test_nothing_is_left_of_a_bar_that_a_line_took_the_place_of(clock):
    out = Terminal()
    bar = Progress(4, out)
    bar.step("plain: code")
    bar.say("done")
    bar.end()
    assert out.getvalue().endswith("left\x1b[K\r\x1b[Kdone\n")


def test_a_file_gets_a_line_only_now_and_then(clock):
    out = io.StringIO()
    bar = Progress(1000, out)
    for _ in range(100):
        clock[0] += 1
        bar.step("plain: code")
    bar.end()
    assert len(out.getvalue().splitlines()) == 3
    assert "\r" not in out.getvalue()
    assert "30/1000 plain: code, 16:10 left" in out.getvalue()
