"""What a record of `bench-dflash run` says per prompt and per suite. Nothing is stored that can be computed here.

docs/measuring.md defines the quantities. All counts and times are without the first token of an answer, which comes
with the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dflash_tools.bench.record import PHASES, Record
from dflash_tools.bench.stats import Interval, Passes, median, ratio_of_passes

ALL = "all"
SETTING = ("temperature", "thinking", "template")
_SERVER, _CLIENT = "decode_ms", "stream_ms"
Setting = tuple[str, ...]
Place = tuple[str, str]
Values = dict[Place, tuple[float, ...]]


@dataclass(frozen=True)
class Row:
    """One side on one suite (or one prompt, or `ALL`) under one setting. None is unknown, or does not apply.

    `short` counts prompts whose answer had no second token, so no rate. `rate` is in tokens per second; `by_client`
    marks a rate by this process's clock, for want of the server's. `al` is tokens out per step, bonus token included.
    `accepted_at[i]` is the share of rounds in which draft i + 1 was accepted. `phases` are milliseconds per round.
    """

    build: str
    setting: dict[str, str]
    suite: str
    prompts: int
    short: int
    tokens: int | None
    rate: float | None
    by_client: bool
    ttft_ms: float | None
    al: float | None
    rounds_per_second: float | None
    speedup: Interval | None
    equal: tuple[int, int] | None
    accepted_at: tuple[float, ...] | None
    phases: dict[str, float] | None

    @property
    def setting_text(self) -> str:
        thinking = "" if self.setting["thinking"] == "default" else f", thinking {self.setting['thinking']}"
        return f"{self.setting['template']}, temperature {self.setting['temperature']}{thinking}"


@dataclass(frozen=True)
class LuceRow:
    """A suite as Luce's RESULTS report it: means over prompts, each prompt counted once."""

    build: str
    suite: str
    prompts: int
    plain_rate: float
    rate: float
    speedup: float
    al: float


@dataclass(frozen=True)
class Group:
    """Prompts of one side under one setting."""

    baseline: str
    build: str
    setting: Setting
    places: tuple[Place, ...]
    samples: Samples

    def of(self, name: str, build: str | None = None) -> Values:
        found = self.samples.found.get((name, self.build if build is None else build, self.setting), {})
        return {place: found[place] for place in self.places if place in found}

    def part(self, suite: str) -> Group:
        """Only the prompts of that suite, or all."""
        return replace(self, places=tuple(p for p in self.places if suite in (ALL, p[0])))

    def row(self, suite: str) -> Row:
        """What these prompts say together, under that name."""
        tokens, steps, rounds, equal, ttft = map(self.of, ("tokens", "steps", "rounds", "equal", "ttft_ms"))
        clock = _SERVER if self.of(_SERVER) else _CLIENT
        times = self.of(clock)
        passes = passes_of(tokens, times)
        counted = [p for p in steps if p in tokens]
        decoded, taken = sum(_decoded(tokens[p]) for p in counted), sum(sum(steps[p]) for p in counted)
        round_ms = sum(sum(times[p]) for p in times if p in rounds)
        checks = [value for values in equal.values() for value in values]
        return Row(
            build=self.build,
            setting=dict(zip(SETTING, self.setting, strict=True)),
            suite=suite,
            prompts=len(self.places),
            short=len(self.places) - len(times),
            tokens=int(sum(map(_decoded, tokens.values()))) if tokens else None,
            rate=1000 * passes.rate if passes else None,
            by_client=clock == _CLIENT,
            ttft_ms=median([median(values) for values in ttft.values()]) if ttft else None,
            al=decoded / taken if taken else None,
            rounds_per_second=1000 * sum(sum(rounds[p]) for p in rounds if p in times) / round_ms if round_ms else None,
            speedup=self._speedup(),
            equal=(int(sum(checks)), len(checks)) if checks else None,
            accepted_at=self._accepted_at(),
            phases=self._phases(),
        )

    def _speedup(self) -> Interval | None:
        """Against the baseline."""
        if not self.baseline:
            return None
        found = paired(replace(self, build=self.baseline), self)
        return ratio_of_passes(found.before, found.after) if found else None

    def _accepted_at(self) -> tuple[float, ...] | None:
        rounds = self.of("rounds")
        counts = {p: found for p, found in self.samples.positions(self.build, self.setting).items() if p in rounds}
        total = sum(sum(rounds[p]) for p in counts)
        if not total:
            return None
        last = max(int(position) for found in counts.values() for position in found)
        return tuple(sum(found.get(str(i), 0.0) for found in counts.values()) / total for i in range(1, last + 1))

    def _phases(self) -> dict[str, float] | None:
        """Mean time per round, every round counted once."""
        rounds = {p: sum(values) for p, values in self.of("rounds").items()}
        times = {p: found for p, found in self.samples.phases(self.build, self.setting).items() if rounds.get(p)}
        total = sum(rounds[p] for p in times)
        if not total:
            return None
        return {phase: sum(found.get(phase, 0.0) * rounds[p] for p, found in times.items()) / total for phase in PHASES}


class Samples:
    """Samples of a record by quantity, side, setting and prompt: the passes of each prompt."""

    def __init__(self, record: Record) -> None:
        self.baselines: dict[str, str] = record.conditions.get("baselines", {})
        self.found: dict[tuple[str, str, Setting], Values] = {}
        self.by_label: dict[tuple[str, str, Setting], dict[Place, dict[str, float]]] = {}
        self.sides: dict[tuple[str, Setting], dict[Place, None]] = {}
        for series in record.series:
            labels = series.labels
            if "prompt" not in labels or not series.values:
                continue
            setting = tuple(labels.get(name, "") for name in SETTING)
            place = labels.get("suite", ""), labels["prompt"]
            self.sides.setdefault((series.build, setting), {})[place] = None
            key = series.name, series.build, setting
            if series.name in ("accepted_at", "phase_ms"):
                label, value = (
                    (labels["position"], sum(series.values))
                    if series.name == "accepted_at"
                    else (labels["phase"], median(series.values))
                )
                self.by_label.setdefault(key, {}).setdefault(place, {})[label] = value
            else:
                self.found.setdefault(key, {})[place] = series.values

    def positions(self, build: str, setting: Setting) -> dict[Place, dict[str, float]]:
        """Accepted drafts by position, over all passes."""
        return self.by_label.get(("accepted_at", build, setting), {})

    def phases(self, build: str, setting: Setting) -> dict[Place, dict[str, float]]:
        """Milliseconds per round by phase, the median of the passes."""
        return self.by_label.get(("phase_ms", build, setting), {})

    def groups(self) -> list[Group]:
        """All prompts of each side and setting."""
        return [
            Group(self.baselines.get(build, ""), build, setting, tuple(places), self)
            for (build, setting), places in self.sides.items()
        ]


def suite_rows(record: Record) -> list[Row]:
    """One row per side, setting and suite, and one of all suites together where there are several."""
    rows = []
    for group in Samples(record).groups():
        suites = list(dict.fromkeys(suite for suite, _ in group.places))
        rows += [group.part(suite).row(suite) for suite in [*suites, *([ALL] if len(suites) > 1 else [])]]
    return rows


def prompt_rows(record: Record) -> list[tuple[str, Row]]:
    """One row per side, setting and prompt, with the prompt's name."""
    return [
        (prompt, replace(group, places=((suite, prompt),)).row(suite))
        for group in Samples(record).groups()
        for suite, prompt in group.places
    ]


def luce_rows(record: Record) -> list[LuceRow]:
    """Greedy raw prompts of code and maths, as Luce's bench_llm.py reports them.

    Rates are means over prompts of each prompt's own rate, the speed-up is the ratio of the means, AL the mean of each
    prompt's tokens per step, all tokens of the answer counted. An answer without steps counts as AL 0.
    """
    rows = []
    for everything in Samples(record).groups():
        if everything.setting != ("0", "default", "raw") or not everything.baseline:
            continue
        for suite in ("code", "maths"):
            group = everything.part(suite)
            rates, before = group.of("decode_rate"), group.of("decode_rate", group.baseline)
            steps, tokens = group.of("steps"), group.of("tokens")
            both = [p for p in rates if p in before]
            als = [sum(tokens[p]) / sum(steps[p]) if sum(steps[p]) else 0.0 for p in steps if p in tokens]
            if not both or not als:
                continue
            one, two = (sum(median(side[p]) for p in both) / len(both) for side in (before, rates))
            rows.append(LuceRow(group.build, suite, len(both), one, two, two / one, sum(als) / len(als)))
    return rows


@dataclass(frozen=True)
class Paired:
    """The same prompts on two sides, timed by the same kind of clock."""

    before: Passes
    after: Passes
    by_client: bool


def paired(one: Group, two: Group) -> Paired | None:
    """Prompts that both have: by the servers' clocks where both tell, else by the client's. None without any work."""
    for clock in (_SERVER, _CLIENT):
        found = [group.of(name) for group in (one, two) for name in ("tokens", clock)]
        both = [p for p in one.places if all(p in values for values in found)]
        if both:
            tokens, times, more_tokens, more_times = ({p: values[p] for p in both} for values in found)
            before, after = passes_of(tokens, times), passes_of(more_tokens, more_times)
            return Paired(before, after, clock == _CLIENT) if before and after and before.rate else None
    return None


def _decoded(tokens: Sequence[float]) -> float:
    return sum(max(0.0, count - 1) for count in tokens)


def passes_of(tokens: Values, times: Values) -> Passes | None:
    """Tokens after the first, and the time of each answer, of the prompts that have both; None for none."""
    places = [p for p in tokens if p in times]
    if not places:
        return None
    return Passes.of([[max(0.0, n - 1) for n in tokens[p]] for p in places], [times[p] for p in places])
