"""The record of `bench-dflash cost` as text: medians, builds side by side, shares of the memory floor."""

from __future__ import annotations

from collections.abc import Mapping

from dflash_tools.bench.record import Record, Series
from dflash_tools.bench.stats import median
from dflash_tools.table import table

FLOOR = "memory floor"
_QUANTITIES = {
    "step_ms": "Step of the target, ms",
    "round_ms": "Round, ms",
    "phase_ms": "Phases of a round, ms",
    "decode_rate": "Decoding, tok/s",
    "prefill_rate": "Prefill, tok/s",
    "memory": "Memory, MiB",
}
# Labels that say nothing where all series agree on the usual value.
_USUAL = {"context": "0", "kv": "f16", "slots": "1", "sampler": "device", "drafter": "dflash"}


def cost_table(record: Record) -> str:
    """One table per quantity. `-` is what was not measured; a share is floor over median."""
    blocks = [_copy_line(record), *(table(header, rows) for header, rows in cost_tables(record))]
    return "\n\n".join([block for block in blocks if block] + _notes(record))


def cost_tables(record: Record) -> list[tuple[list[str], list[list[str]]]]:
    """Header and rows of each quantity that was measured; the first cell of the header names it."""
    builds = [b for b in record.builds() if b != FLOOR]
    found = []
    for name, title in _QUANTITIES.items():
        places: dict[str, dict[str, Series]] = {}
        for series in record.select(name):
            places.setdefault(_place(series.labels), {})[series.build] = series
        if places:
            floors = any(FLOOR in sides for sides in places.values())
            header = [title, *builds, *(["ratio"] if len(builds) > 1 else []), *(["floor", "share"] if floors else [])]
            found.append((header, [_row(place, sides, builds, floors) for place, sides in places.items()]))
    return found


def _row(place: str, sides: Mapping[str, Series], builds: list[str], floors: bool) -> list[str]:
    values = [median(sides[b].values) if b in sides else None for b in builds]
    cells = [_number(value) for value in values]
    if len(builds) > 1:
        first, second = values[0], values[1]
        cells.append(f"{first / second:.3f}" if first is not None and second else "-")
    if floors:
        floor = median(sides[FLOOR].values) if FLOOR in sides else None
        cells += [_number(floor), f"{floor / values[0]:.0%}" if floor and values[0] else "-"]
    return [place, *cells]


def _place(labels: Mapping[str, str]) -> str:
    """`acceptance 7, context 8192`, without what is as usual; phases come first."""
    shown = dict(labels)
    first = [shown.pop(key) for key in ("phase", "part") if key in shown]
    if shown.get("drafter") == "none":
        shown.pop("drafter")
        first.append("plain")
    return ", ".join([*first, *(f"{key} {value}" for key, value in shown.items() if _USUAL.get(key) != value)]) or "-"


def _copy_line(record: Record) -> str:
    rates = next(record.select("copy_rate"), None)
    return f"A copy moves {median(rates.values):.0f} GB/s, read and written together." if rates else ""


def _notes(record: Record) -> list[str]:
    unknown = [b for b in record.builds() if b != FLOOR and not any(record.select("phase_ms", b))]
    notes = [*record.notes]
    if unknown:
        notes.append(f"the phases of a round of {' and '.join(unknown)} are unknown: the build does not report them")
    return ["\n".join(f"note: {note}" for note in notes)] if notes else []


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"
