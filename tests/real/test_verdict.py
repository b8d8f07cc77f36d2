"""When the check on real text passes, and what it says."""

from __future__ import annotations

import pytest
from dflash_tools.client import Completion, Counted, Timings
from dflash_tools.compare import Difference, Pair
from dflash_tools.real.__main__ import main, report


def answer(tokens: int, steps: int) -> Counted:
    timings = Timings(predicted_n=tokens + 1, predicted_ms=10.0, draft_n_accepted=tokens - steps)
    return Counted(Completion("", (), "length", False, timings), steps)


def pair(margin: float | None = 0.0, steps: int = 30) -> Pair:
    """90 tokens in `steps` steps, equal unless a margin is given."""
    difference = None if margin == 0.0 else Difference(5, " a", " b", margin)
    return Pair("prompt", answer(90, 90), answer(90, steps), difference)


@pytest.mark.parametrize(
    ("pairs", "near_tie", "status"),
    [
        ([pair()] * 10, 0.0, 0),
        ([pair()] * 9 + [pair(0.01)], 0.05, 0),
        ([pair()] * 9 + [pair(0.01)], 0.0, 1),
        ([pair()] * 9 + [pair(0.2)], 0.05, 1),
        ([pair()] * 9 + [pair(None)], 0.05, 1),
        ([pair()] * 7 + [pair(0.01)] * 3, 0.05, 1),
        ([pair(steps=40)] * 10, 0.0, 1),
    ],
    ids=["equal", "a near-tie", "a near-tie in f32", "no tie", "unknown margin", "too many ties", "too many steps"],
)
def test_verdict(pairs, near_tie, status, capsys):
    assert report({"set": pairs}, near_tie) == status
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("FAIL" if status else "PASS")
    assert f"{sum(pair.equal for pair in pairs)}/{len(pairs)}" in said


def test_every_difference_is_shown_with_its_margin(capsys):
    report({"HumanEval": [pair(), pair(0.0123)]}, 0.05)
    assert "HumanEval prompt 1: token 5: ' a' without, ' b' with drafter; margin 0.0123 nats" in capsys.readouterr().out


def test_without_a_drafter_it_skips_with_a_sentence(tmp_path, capsys):
    assert main(["--drafter", str(tmp_path / "nowhere"), "--work", str(tmp_path / "work")]) == 0
    assert "skipped." in capsys.readouterr().out
    assert not (tmp_path / "work").exists()
