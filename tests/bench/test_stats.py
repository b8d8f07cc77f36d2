"""The few statistics, against numbers by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from dflash_tools.bench.stats import Interval, Passes, median, quartiles, ratio_of_medians, ratio_of_passes, scatter
from scipy import stats


def test_medians_and_quartiles_by_hand():
    assert median([5, 1, 3]) == 3
    assert median([4, 1, 3, 2]) == 2.5
    assert quartiles([1, 2, 3, 4, 5]) == (2, 4)
    assert scatter([1, 2, 3, 4, 5]) == pytest.approx(2 / 3)
    assert scatter([0, 0, 0]) == 0
    with pytest.raises(ValueError, match="no values"):
        median([])


def test_the_interval_of_a_ratio_is_that_of_scipys_bootstrap():
    random = np.random.default_rng(3)
    before, after = random.lognormal(2, 0.1, 40), random.lognormal(1.6, 0.1, 30)
    found = ratio_of_medians(before, after)
    expected = stats.bootstrap(
        (before, after), lambda x, y, axis: np.median(y, axis) / np.median(x, axis), method="percentile",
        n_resamples=20_000, rng=1,
    ).confidence_interval  # fmt: skip
    assert found.value == np.median(after) / np.median(before)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.01)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(5)
    covered = sum(
        not ratio_of_medians(random.normal(10, 1, 15), random.normal(20, 2, 15)).excludes(2.0) for _ in range(60)
    )
    assert covered >= 54


def test_three_samples_give_an_interval_as_wide_as_they_are():
    assert ratio_of_medians([10, 10, 10], [18, 20, 23]) == Interval(2.0, 1.8, 2.3)


def test_one_sample_has_no_interval():
    for found in (
        ratio_of_medians([10], [20, 21]),
        ratio_of_passes(Passes.of([[1]], [[2.0]]), Passes.of([[1]], [[1.0]])),
    ):
        assert not found.known
        assert not found.excludes(99.0)
        assert "[" not in str(found)
    assert str(ratio_of_medians([10, 10], [20, 20])) == "2.00x [2.00, 2.00]"


def test_a_ratio_to_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        ratio_of_medians([], [1])
    with pytest.raises(ValueError, match="median of 0"):
        ratio_of_medians([0, 0], [1])


def test_a_pass_counts_long_answers_for_as_long_as_they_last():
    # 100 tokens in 1 s and 10 in 1 s are 55 tok/s, not the mean of 100 and 10; the median of two passes is their mean.
    passes = Passes.of([[100, 100], [10, 10]], [[1.0, 2.0], [1.0, 2.0]])
    assert passes.rates().tolist() == [55.0, 27.5]
    assert passes.rate == 41.25


def test_a_prompt_that_lost_a_pass_shortens_the_others():
    assert Passes.of([[1, 2, 3], [4, 5]], [[1, 1, 1], [1, 1]]).amount.tolist() == [[1, 2], [4, 5]]


def test_what_slows_both_sides_of_a_pass_leaves_their_ratio_narrow():
    slow = np.array([1.0, 3.0, 9.0, 2.0, 5.0])
    before = Passes(np.full((4, 5), 100.0), np.full((4, 5), 1.0) * slow)
    after = Passes(np.full((4, 5), 100.0), np.full((4, 5), 0.5) * slow)
    together = ratio_of_passes(before, after)
    apart = ratio_of_passes(before, after, together=False)
    assert (together.value, together.low, together.high) == pytest.approx((2.0, 2.0, 2.0))
    assert apart.value == pytest.approx(2.0)
    assert apart.low < 1.0 < apart.high


def test_prompts_that_differ_widen_the_interval():
    before = Passes(np.full((2, 3), 100.0), np.array([[1.0] * 3, [1.0] * 3]))
    after = Passes(np.full((2, 3), 100.0), np.array([[0.25] * 3, [1.0] * 3]))
    found = ratio_of_passes(before, after)
    assert found.value == pytest.approx(200 / 1.25 / 100)
    assert (found.low, found.high) == pytest.approx((1.0, 4.0))


def test_other_prompts_are_refused():
    with pytest.raises(ValueError, match="not the same prompts"):
        ratio_of_passes(Passes(np.ones((2, 3)), np.ones((2, 3))), Passes(np.ones((3, 3)), np.ones((3, 3))))
