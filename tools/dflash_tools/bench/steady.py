"""Series of `bench-dflash cost` whose samples say too little: they spread, or still run when their visit ends.

A visit is one start of a program for one case. Samples of one visit that fall from first to last were taken while
something warmed up; from several visits, with the other build in between, one would know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from dflash_tools.bench.cost_table import place
from dflash_tools.bench.record import Record, Series
from dflash_tools.bench.stats import median

# Distance of the farthest samples, and of the last from the first of one visit, as shares of the median that are said.
# Three samples run in one direction by chance in one of three series, so small runs mean nothing.
SPREAD, RUN = 0.05, 0.02
_FEWEST = 3
_QUANTITIES = {"step_ms": "steps", "round_ms": "rounds", "prefill_rate": "prefill"}
_Key = tuple[object, ...]


class Visits:
    """Counts from how many visits the samples of each series of `record` came."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self._sizes: dict[_Key, int] = {}
        self._visits: Counter[_Key] = Counter()

    def count(self) -> None:
        """To be called after each visit."""
        for series in self.record.series:
            if len(series.values) > self._sizes.get(_key(series), 0):
                self._sizes[_key(series)] = len(series.values)
                self._visits[_key(series)] += 1

    def disturbances(self) -> list[str]:
        """A sentence that names the series that spread and one that names those that ran, of steps, rounds, prefill."""
        measured = [s for s in self.record.series if s.name in _QUANTITIES]
        spread = [(s, f"{share:.0%}") for s in measured if (share := spread_of(s.values)) > SPREAD]
        ran = [
            (s, f"{s.values[0]:.4g} to {s.values[-1]:.4g}")
            for s in measured if self._visits[_key(s)] == 1 and abs(run_of(s.values)) > RUN
        ]  # fmt: skip
        return [
            *([f"samples lie apart by more than {SPREAD:.0%} of their median: {_named(spread)}"] if spread else []),
            *([f"samples of one visit run in one direction: {_named(ran)}"] if ran else []),
        ]


def spread_of(values: Sequence[float]) -> float:
    """Distance of the smallest from the largest, as a share of the median; 0 for a median of 0."""
    middle = median(values)
    return (max(values) - min(values)) / abs(middle) if middle else 0.0


def run_of(values: Sequence[float]) -> float:
    """How far the samples ran from the first to the last, as a share of the median: above 0 upwards, below 0 downwards.

    0 for fewer than three samples, and for samples that turned back on the way.
    """
    steps = [b - a for a, b in pairwise(values)]
    if len(values) < _FEWEST or not median(values) or not (all(s > 0 for s in steps) or all(s < 0 for s in steps)):
        return 0.0
    return sum(steps) / abs(median(values))


def _named(found: Sequence[tuple[Series, str]]) -> str:
    """`rounds: acceptance 1 (fork 11%, upstream 13%), plain (fork 6%); steps: ...`"""
    named: dict[str, dict[str, list[str]]] = {}
    for series, what in found:
        places = named.setdefault(_QUANTITIES[series.name], {})
        places.setdefault(place(series.labels), []).append(f"{series.build} {what}")
    return "; ".join(
        f"{quantity}: " + ", ".join(f"{where} ({', '.join(sides)})" for where, sides in places.items())
        for quantity, places in named.items()
    )


def _key(series: Series) -> _Key:
    return series.name, series.build, *sorted(series.labels.items())
