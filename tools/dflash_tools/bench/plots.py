"""What the page draws: each plot as its points, independent of how they are drawn (svg.py)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from dflash_tools.bench.record import PHASES, PLAIN, Record, Series
from dflash_tools.bench.stats import Interval, median
from dflash_tools.bench.summary import ALL, Row, prompt_rows, suite_rows

FLOOR = "memory floor"
UNSPLIT = "not split"
# Labels that may tell curves of one plot apart; others are held at the value that was measured first.
_CURVES = ("shape", "context")


@dataclass(frozen=True)
class Point:
    """One mark. `x` is a number, or the name of a bar; `low` and `high` bound `y` where an interval is known."""

    series: str
    x: float | str
    y: float
    note: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Plot:
    """`kind` is stack (a bar of segments), bars (beside each other), lines or scatter; `reference` marks a level."""

    id: str
    title: str
    kind: str
    x_title: str
    y_title: str
    points: tuple[Point, ...]
    reference: float | None = None
    caption: str = ""
    order: tuple[str, ...] = ()

    def series(self) -> list[str]:
        return list(dict.fromkeys(point.series for point in self.points))

    def colour(self, series: str) -> int:
        """Number of a series in `order`, so that a side has one colour on the whole page."""
        order = (*self.order, *(name for name in self.series() if name not in self.order))
        return order.index(series)


def plots(record: Record) -> list[Plot]:
    """The plots that the record has samples for."""
    builds = tuple(record.builds())
    found = _cost_plots(record) if record.kind == "cost" else _run_plots(record)
    return [replace(plot, order=PHASES if plot.kind == "stack" else builds) for plot in found if plot.points]


def _run_plots(record: Record) -> Iterable[Plot]:
    rows = suite_rows(record)
    settings = list(dict.fromkeys(row.setting_text for row in rows))
    for number, setting in enumerate(settings):
        mine = [row for row in rows if row.setting_text == setting]
        yield Plot(
            f"rate-by-suite-{number}", f"Tokens per second by suite ({setting})", "bars", "", "tok/s",
            tuple(Point(r.build, r.suite, r.rate, _rate_note(r)) for r in mine if r.rate is not None),
        )  # fmt: skip
        yield Plot(
            f"speedup-by-al-{number}", f"Speed-up by acceptance length ({setting})", "scatter",
            "tokens per verify step", "times plain decoding", tuple(_speedup_points(record, setting)), reference=1.0,
            caption="One point per prompt, with its 95% interval over passes. Above the line, the drafter pays. "
            + _equality(mine),
        )  # fmt: skip
        whole = _whole(mine)
        yield Plot(
            f"accepted-by-position-{number}", f"Acceptance by position ({setting})", "lines",
            "position in the draft", "share of rounds",
            tuple(
                Point(r.build, float(i + 1), share) for r in whole for i, share in enumerate(r.accepted_at or ())
            ),
            caption="Share of all rounds in which the draft of that position was accepted, over all suites.",
        )  # fmt: skip
        yield Plot(
            f"round-by-phase-{number}", f"Time of a round by phase ({setting})", "stack", "ms per round", "",
            tuple(_run_rounds(whole)),
            caption="Mean over all rounds. 'other' is the host's gap: the round less the named phases. A side that "
            f"does not tell its phases shows the whole round as '{UNSPLIT}'.",
        )  # fmt: skip


def _run_rounds(rows: Iterable[Row]) -> Iterable[Point]:
    for row in rows:
        if row.phases:
            yield from (Point(phase, row.build, row.phases[phase]) for phase in PHASES)
        elif row.rounds_per_second:
            yield Point(UNSPLIT, row.build, 1000 / row.rounds_per_second)


def _equality(rows: list[Row]) -> str:
    """Speed never without equality: how many texts are those of the baseline, or that nobody looked."""
    drafted = [row for row in _whole(rows) if row.speedup]
    told = [f"{r.build}: {r.equal[0]} of {r.equal[1]} texts equal" for r in drafted if r.equal]
    told += [f"{r.build}: texts not compared" for r in drafted if not r.equal]
    return "; ".join(told) + "." if told else ""


def _whole(rows: list[Row]) -> list[Row]:
    """Of each side the row of all suites, or its only suite."""
    names = [row.build for row in rows]
    return [row for row in rows if row.suite == ALL or names.count(row.build) == 1]


def _speedup_points(record: Record, setting: str) -> Iterable[Point]:
    for prompt, row in prompt_rows(record):
        if row.setting_text == setting and row.speedup is not None and row.al is not None:
            s = row.speedup
            bounds = (s.low, s.high) if s.known else (None, None)
            yield Point(row.build, row.al, s.value, f"{row.suite}/{prompt}", *bounds)


def _rate_note(row: Row) -> str:
    clock = ", by the client's clock" if row.by_client else ""
    return f"{row.prompts} prompts{clock}{_span(row.speedup)}"


def _span(speedup: Interval | None) -> str:
    return f", {speedup}" if speedup else ""


def _cost_plots(record: Record) -> Iterable[Plot]:
    yield Plot(
        "round-by-phase", "Time of a round by phase", "stack", "ms per round", "", tuple(_cost_rounds(record)),
        caption="'other' is the host's gap: the round less the named phases. A build that does not tell its phases "
        f"shows the whole round as '{UNSPLIT}'.",
    )  # fmt: skip
    yield Plot(
        "step-by-rows", "Cost of a step by rows", "lines", "rows", "ms",
        tuple(
            Point(_name(s, _CURVES), float(s.labels["rows"]), median(s.values))
            for s in _usual(record.select("step_ms"), ("rows", *_CURVES))
        ),
    )  # fmt: skip
    yield Plot(
        "speedup-by-al", "Speed-up by acceptance length", "lines", "tokens per verify step", "times plain decoding",
        tuple(_cost_speedups(record)), reference=1.0, caption="Acceptance is drawn at random, weights are random.",
    )  # fmt: skip
    yield Plot(
        "prefill-by-tokens", "Prefill", "lines", "tokens of the prompt", "tok/s",
        tuple(
            Point(_name(s, ("drafter", "shape")), float(s.labels["tokens"]), median(s.values))
            for s in _usual(_measured(record, "prefill_rate"), ("tokens", "drafter", "shape"))
        ),
    )  # fmt: skip


def _cost_rounds(record: Record) -> Iterable[Point]:
    """Phases of drafted rounds, the builds beside each other; of a build without phases the round as one."""
    split = _usual(record.select("phase_ms"), ("phase", "acceptance", *_CURVES))
    telling = {s.build for s in record.select("phase_ms")}
    whole = [
        s for s in _usual([s for s in record.select("round_ms") if "acceptance" in s.labels], ("acceptance", *_CURVES))
        if s.build != FLOOR and s.build not in telling
    ]  # fmt: skip
    situations = [[s.labels.get(name) for name in ("acceptance", *_CURVES)] for s in (*split, *whole)]
    in_order = sorted(zip(situations, (*split, *whole), strict=True), key=lambda found: situations.index(found[0]))
    for _, s in in_order:
        yield Point(s.labels.get("phase", UNSPLIT), _name(s, ("acceptance", *_CURVES)), median(s.values))


def _cost_speedups(record: Record) -> Iterable[Point]:
    rates = _measured(record, "decode_rate")
    plain = {_key(s, ("drafter", "acceptance")): median(s.values) for s in rates if s.labels.get("drafter") == PLAIN}
    tokens = {_key(s, ()): median(s.values) for s in record.select("tokens_per_round")}
    for series in _usual([s for s in rates if "acceptance" in s.labels], ("acceptance", *_CURVES)):
        before = plain.get(_key(series, ("drafter", "acceptance")))
        length = tokens.get(_key(series, ())) or _number(series.labels["acceptance"])
        if before and length:
            ratio = median(series.values) / before
            yield Point(_name(series, _CURVES), length, ratio, f"acceptance {series.labels['acceptance']}")


def _measured(record: Record, name: str) -> list[Series]:
    """Series of builds: a limit far above them would leave their plot no room."""
    return [s for s in record.select(name) if s.build != FLOOR]


def _usual(series: Iterable[Series], varying: tuple[str, ...]) -> list[Series]:
    """Series whose other labels are those of the first one: what was measured first is what matters most."""
    everything = [s for s in series if s.values]
    first: Mapping[str, str] = everything[0].labels if everything else {}
    fixed = {name: value for name, value in first.items() if name not in varying}
    return [s for s in everything if {n: v for n, v in s.labels.items() if n not in varying} == fixed]


def _key(series: Series, without: tuple[str, ...]) -> tuple[str, ...]:
    labels = sorted((name, value) for name, value in series.labels.items() if name not in without)
    return series.build, *(text for pair in labels for text in pair)


def _name(series: Series, labels: tuple[str, ...]) -> str:
    """`fork, shape 8b, acceptance 7`: the build and those of its labels that tell it apart."""
    told = [f"{name} {series.labels[name]}" for name in labels if series.labels.get(name, "0") != "0"]
    words = ("plain" if t == f"drafter {PLAIN}" else "with drafter" if t.startswith("drafter ") else t for t in told)
    return ", ".join([series.build, *words])


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
