"""`bench-dflash compare A.json B.json`: B as a multiple of A, quantity by quantity, when their conditions agree.

Rates of a `run` are compared over whole suites: prompts and passes are resampled (stats.ratio_of_passes). Everything
else is compared by medians of samples (stats.ratio_of_medians). An interval that holds 1 is no difference.
"""

from __future__ import annotations

from collections.abc import Sequence

from dflash_tools.bench.cost_table import FLOOR
from dflash_tools.bench.record import BROKEN_OFF, FAILED, Record, unlike
from dflash_tools.bench.report import Section, interval
from dflash_tools.bench.stats import LEVEL, Interval, median, ratio_of_medians, ratio_of_passes
from dflash_tools.bench.summary import ALL, Samples, paired
from dflash_tools.errors import UserError

_NOTED = (BROKEN_OFF, FAILED, "left out: ", "unstable: ", "differs: ")
_AMOUNTS = ("count", "tokens", "MiB")


def compare(one: Record, two: Record, names: tuple[str, str], allowed: Sequence[str] = ()) -> list[Section]:
    """Tables of ratios. Raises UserError naming every condition in which the records differ."""
    if one.kind != two.kind:
        raise UserError(
            f"{names[0]} is of bench-dflash {one.kind} and {names[1]} of bench-dflash {two.kind}, which measure other "
            "things; compare two of the same command"
        )
    if different := unlike(one, two, allowed):
        listed = "\n".join(f"  {line}" for line in different)
        raise UserError(
            f"{names[0]} and {names[1]} were not measured alike, so a ratio would say nothing:\n{listed}\n"
            "Measure again under the same conditions, or name what is meant to differ with --allow"
        )
    found = _suites(one, two) if one.kind == "run" else _quantities(one, two)
    if not any(section.rows for section in found):
        raise UserError(f"{names[0]} and {names[1]} have no quantity of the same side in common")
    return [*found, *_texts(one, two, names), *_said(one, two, names, allowed)]


def _quantities(one: Record, two: Record) -> list[Section]:
    before = {_key(s.name, s.build, s.labels): s for s in one.series if s.build != FLOOR}  # which nobody measured
    rows = []
    for series in two.series:
        old = before.get(_key(series.name, series.build, series.labels))
        if old and old.values and series.values and median(old.values):
            ratio = ratio_of_medians(old.values, series.values)
            place = ", ".join(f"{name} {value}" for name, value in series.labels.items())
            rows.append(
                (series.name, series.build, place, f"{median(old.values):.4g}", f"{median(series.values):.4g}",
                 series.unit, interval(ratio), verdict(ratio, series.unit))
            )  # fmt: skip
    header = ("quantity", "build", "at", "A", "B", "unit", "B / A", "")
    text = f"Ratios of medians with their {LEVEL:.0%} bootstrap intervals."
    return [Section("B as a multiple of A", header, tuple(rows), text)]


def _suites(one: Record, two: Record) -> list[Section]:
    rows = []
    after = {(group.build, group.setting): group for group in Samples(two).groups()}
    for before in Samples(one).groups():
        group = after.get((before.build, before.setting))
        for suite in dict.fromkeys([*(suite for suite, _ in before.places), ALL]) if group else ():
            found = paired(before.part(suite), group.part(suite)) if group else None
            if found:
                ratio = ratio_of_passes(found.before, found.after, together=False)
                setting = f"{before.setting[2]}, temperature {before.setting[0]}, thinking {before.setting[1]}"
                rates = (f"{1000 * found.before.rate:.1f}", f"{1000 * found.after.rate:.1f}")
                unit = "tok/s, client's clock" if found.by_client else "tok/s"
                rows.append((suite, before.build, setting, *rates, unit, interval(ratio), verdict(ratio, unit)))
    header = ("suite", "side", "setting", "A", "B", "unit", "B / A", "")
    text = f"Ratios of whole passes, with their {LEVEL:.0%} intervals over prompts and passes."
    return [Section("B as a multiple of A", header, tuple(rows), text)]


def verdict(ratio: Interval, unit: str) -> str:
    """`faster`, `slower` (or `less`, `more`) when the interval leaves 1, else what an interval
    around 1 means: no difference was shown."""
    if not ratio.known:
        return "one sample"
    if not ratio.excludes(1.0):
        return "within noise"
    if unit in _AMOUNTS:
        return "more" if ratio.value > 1 else "less"
    return "faster" if (ratio.value > 1) != (unit == "ms") else "slower"


def _texts(one: Record, two: Record, names: tuple[str, str]) -> list[Section]:
    """Greedy texts that are not the same in both records: speed never without equality."""
    before = {_key("", a.build, a.labels): a for a in one.answers if a.labels.get("temperature") == "0"}
    both = [(before[k], a) for a in two.answers if (k := _key("", a.build, a.labels)) in before]
    if not both:
        return []
    parted = [a for old, a in both if (old.text, old.finish) != (a.text, a.finish)]
    lines = [f"{len(both) - len(parted)} of {len(both)} greedy texts are the same in {names[0]} and {names[1]}."]
    lines += [f"differs: {a.build}, {a.labels.get('suite')}/{a.labels.get('prompt')}" for a in parted]
    return [Section("Texts", text="\n".join(lines))]


def _said(one: Record, two: Record, names: tuple[str, str], allowed: Sequence[str]) -> list[Section]:
    lines = [f"allowed to differ: {line}" for line in unlike(one, two) if line not in unlike(one, two, allowed)]
    for name, record in zip(names, (one, two), strict=True):
        builds = record.conditions.get("builds", {})
        lines += [f"{name}: {build} is {what}" for build, what in builds.items()] if isinstance(builds, dict) else []
        lines += [f"{name} was disturbed: {what}" for what in record.conditions.get("disturbances", ())]
        lines += [f"{name}: {note}" for note in record.notes if note.startswith(_NOTED)]
    return [Section("Notes", text="\n".join(lines))] if lines else []


def _key(name: str, build: str, labels: object) -> tuple[object, ...]:
    return name, build, *sorted(dict(labels).items())
