"""Medians, scatter and intervals: the few statistics that the reports use.

Intervals are percentile intervals of a seeded bootstrap. With three samples they are about as wide as the samples
themselves, which is what three samples can say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
DRAWS = 2000
_SEED = 20260101


@dataclass(frozen=True)
class Interval:
    """A value and the range it may lie in; without end on both sides when one sample is all there is."""

    value: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def known(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    def __str__(self) -> str:
        return f"{self.value:.2f}x [{self.low:.2f}, {self.high:.2f}]" if self.known else f"{self.value:.2f}x"

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


@dataclass(frozen=True)
class Passes:
    """Work done on the same prompts in several passes: `amount` and `cost`, both `[prompts, passes]`.

    The quotient of their sums is a rate: tokens and milliseconds, or tokens and steps.
    """

    amount: np.ndarray
    cost: np.ndarray

    @classmethod
    def of(cls, amount: Sequence[Sequence[float]], cost: Sequence[Sequence[float]]) -> Passes:
        """Prompts that lost a pass shorten all others to the same number of passes."""
        count = min(len(values) for values in (*amount, *cost))
        return cls(np.array([v[:count] for v in amount], float), np.array([v[:count] for v in cost], float))

    def rates(self, prompts: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Rate of each pass: all prompts together, so that long answers count as much as they last.

        With `prompts` `[draws, n]`, the rates of each draw: `[draws, passes]`.
        """
        amount, cost = self.amount[prompts].sum(axis=-2), self.cost[prompts].sum(axis=-2)
        return np.divide(amount, cost, out=np.zeros_like(cost), where=cost > 0)

    @property
    def rate(self) -> float:
        """Median over the passes."""
        return median(self.rates())


def median(values: Sequence[float] | np.ndarray) -> float:
    """Raises ValueError for no values: what was not measured has no median."""
    if not len(values):
        raise ValueError("median of no values")
    # of a few values, a hundred times as fast as NumPy's
    ordered = sorted(map(float, values))
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third, by linear interpolation between the sorted values."""
    low, high = np.percentile(np.asarray(values, float), [25, 75])
    return float(low), float(high)


def scatter(values: Sequence[float]) -> float:
    """Distance of the quartiles as a share of the median; 0 for a median of 0."""
    low, high = quartiles(values)
    middle = median(values)
    return (high - low) / abs(middle) if middle else 0.0


def ratio_of_medians(before: Sequence[float], after: Sequence[float]) -> Interval:
    """median(after) / median(before); both sides are resampled independently.

    Raises ValueError when a side has no samples or `before` is 0.
    """
    one, two = np.asarray(before, float), np.asarray(after, float)
    middle = median(one)
    if not middle:
        raise ValueError("ratio to a median of 0")
    if min(len(one), len(two)) == 1:
        return Interval(median(two) / middle)
    random = np.random.default_rng(_SEED)
    draws = [np.median(side[random.integers(len(side), size=(DRAWS, len(side)))], axis=1) for side in (one, two)]
    found = draws[1][draws[0] != 0] / draws[0][draws[0] != 0]
    return _interval(median(two) / middle, found)


def ratio_of_passes(before: Passes, after: Passes, *, together: bool = True) -> Interval:
    """Rate of `after` as a multiple of that of `before`: the ratio of their medians over the passes.

    Prompts and passes are resampled, so the interval covers the choice of prompts and the noise of the machine. Both
    sides have the same prompts in every draw, and, when they ran `together` (interleaved), the same passes: what slowed
    one then slowed the other. Raises ValueError for sides that have not the same prompts, or a `before` without work.
    """
    passes = [side.cost.shape[1] for side in (before, after)]
    if together:
        passes = [min(passes)] * 2
    if before.cost.shape[0] != after.cost.shape[0] or not min(passes):
        raise ValueError(f"not the same prompts: {before.cost.shape} and {after.cost.shape}")
    if not before.rate:
        raise ValueError("ratio to a rate of 0")
    if len(before.cost) == 1 and min(passes) == 1:
        return Interval(after.rate / before.rate)
    random = np.random.default_rng(_SEED)
    prompts = random.integers(len(before.cost), size=(DRAWS, len(before.cost)))
    chosen = [random.integers(count, size=(DRAWS, count)) for count in passes]
    below, above = (
        np.median(np.take_along_axis(side.rates(prompts), which, axis=1), axis=1)
        for side, which in zip((before, after), (chosen[0], chosen[0] if together else chosen[1]), strict=True)
    )
    return _interval(after.rate / before.rate, above[below > 0] / below[below > 0])


def _interval(value: float, draws: np.ndarray) -> Interval:
    if not len(draws):
        return Interval(value)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
