"""Series whose samples say too little are named before any number."""

from __future__ import annotations

import pytest
from dflash_tools.bench.record import Record
from dflash_tools.bench.steady import Visits, run_of, spread_of

AT = {"drafter": "dflash", "acceptance": "1", "context": "0"}


def visited(*visits: tuple[str, list[float]], name: str = "round_ms", **labels: str) -> list[str]:
    """What is said of a series after visits of a build that each gave these samples."""
    record = Record("cost")
    seen = Visits(record)
    for build, values in visits:
        record.add(name, build, "ms", values, **(labels or AT))
        seen.count()
    return seen.disturbances()


def test_quiet_samples_are_not_mentioned():
    assert visited(("fork", [10.0, 10.2, 10.1]), ("upstream", [9.0])) == []


def test_samples_that_lie_far_apart_are_named_with_their_side():
    assert visited(("fork", [13.06, 14.55, 13.27]), ("upstream", [15.0, 15.1, 15.0])) == [
        "samples lie apart by more than 5% of their median: rounds: acceptance 1 (fork 11%)"
    ]


def test_samples_of_one_visit_that_run_in_one_direction_are_named():
    assert visited(("fork", [10.0, 9.9, 9.7]), ("upstream", [9.0, 9.1, 9.05])) == [
        "samples of one visit run in one direction: rounds: acceptance 1 (fork 10 to 9.7)"
    ]


def test_samples_of_several_visits_may_run():
    assert visited(("fork", [10.0]), ("upstream", [9.0]), ("fork", [9.9, 9.7])) == []


def test_a_run_too_small_to_mean_anything_is_not_mentioned():
    assert visited(("fork", [10.0, 9.95, 9.9])) == []


def test_steps_and_prefill_are_looked_at_and_sizes_are_not():
    assert visited(("fork", [1.0, 2.0]), name="memory", part="all") == []
    assert visited(("fork", [1.0, 2.0]), name="decode_rate") == [], "draws of the acceptance differ between requests"
    for name, said in (("step_ms", "steps: rows 4 (fork 67%)"), ("prefill_rate", "prefill: rows 4 (fork 67%)")):
        assert visited(("fork", [1.0, 2.0]), name=name, rows="4")[0].endswith(said)


@pytest.mark.parametrize(
    ("values", "run"),
    [([4.0, 3.0, 2.0], -2 / 3), ([2.0, 3.0, 4.0], 2 / 3), ([2.0, 4.0, 3.0], 0.0), ([1.0, 2.0], 0.0), ([3.0] * 3, 0.0)],
)
def test_a_run_goes_one_way_through_three_samples_at_least(values, run):
    assert run_of(values) == pytest.approx(run)


def test_a_spread_is_that_of_the_farthest_samples():
    assert spread_of([10.0, 12.0, 9.0]) == pytest.approx(0.3) and spread_of([0.0, 0.0]) == 0.0
