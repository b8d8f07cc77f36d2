"""The tables of `bench-dflash cost`: medians, builds side by side, shares of the memory floor; and what they mean."""

from __future__ import annotations

from collections.abc import Mapping

from dflash_tools.bench.record import PLAIN, Record, Series
from dflash_tools.bench.stats import median

FLOOR = "memory floor"
_QUANTITIES = {
    "step_ms": "Step of the target, ms",
    "round_ms": "Round, ms",
    "phase_ms": "Phases of a round, ms",
    "decode_rate": "Decoding, tok/s",
    "prefill_rate": "Prefill, tok/s",
    "memory": "Memory, MiB",
}
# Values of labels that the tables leave out; `usual` says them once.
_USUAL = {"context": "0", "kv": "f16", "slots": "1", "sampler": "device"}


def cost_tables(record: Record) -> list[tuple[list[str], list[list[str]]]]:
    """Header and rows of each quantity that was measured; the first cell of the header names it.

    `-` is what was not measured. A share is that of the first build: of a time the floor over its median, of a rate
    its median over the limit, so that both say how near it is to what the memory allows.
    """
    builds = _builds(record)
    found = []
    for name, title in _QUANTITIES.items():
        places: dict[str, dict[str, Series]] = {}
        for series in record.select(name):
            places.setdefault(place(series.labels), {})[series.build] = series
        if places and builds:
            floors = any(FLOOR in sides for sides in places.values())
            rate = name.endswith("_rate")
            share = ["limit", f"{builds[0]} / limit"] if rate else ["floor", f"floor / {builds[0]}"]
            header = [
                title,
                *builds,
                *([" / ".join(builds[:2])] if len(builds) > 1 else []),
                *(share if floors else []),
            ]
            found.append((header, [_row(where, sides, builds, floors, rate) for where, sides in places.items()]))
    return found


def _row(where: str, sides: Mapping[str, Series], builds: list[str], floors: bool, rate: bool) -> list[str]:
    values = [median(sides[b].values) if b in sides else None for b in builds]
    cells = [_number(value) for value in values]
    if len(builds) > 1:
        first, second = values[0], values[1]
        cells.append(f"{first / second:.3f}" if first is not None and second else "-")
    if floors:
        floor = median(sides[FLOOR].values) if FLOOR in sides else None
        share = (values[0] / floor if rate else floor / values[0]) if floor and values[0] else None
        cells += [_number(floor), "-" if share is None else f"{share:.0%}"]
    return [where, *cells]


def place(labels: Mapping[str, str]) -> str:
    """`acceptance 7, context 8192`, without what is as usual; phases come first, and `-` is a place without labels."""
    shown = dict(labels)
    first = [shown.pop(key) for key in ("phase", "part") if key in shown]
    drafter = shown.pop("drafter", None)
    if drafter == PLAIN:
        first.append("plain")
    elif drafter and "acceptance" not in shown:
        first.append("with drafter")
    return ", ".join([*first, *(f"{key} {value}" for key, value in shown.items() if _USUAL.get(key) != value)]) or "-"


def usual(record: Record) -> str:
    """The conditions of every row that names no others, and how a figure came of its samples."""
    counts = sorted({len(s.values) for s in record.select("round_ms") if s.build != FLOOR})
    samples = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0]) if counts else ""
    said = [
        "weights and acceptance are random",
        "unless a row says otherwise: KV f16, no context before the prompt, 1 slot, sampled on the device",
        *([f"medians, of rounds over {samples} requests each"] if samples else []),
    ]
    return "; ".join(said)


def remarks(record: Record) -> list[str]:
    """What the measured bandwidth is, and which builds leave the phases unknown."""
    rates = next(record.select("copy_rate"), None)
    lines = []
    if rates:
        moved = f"{median(rates.values):.0f} GB/s"
        lines.append(f"A copy moves {moved}, read and written together: floors and limits are at that rate.")
    for series in record.select("drafts_per_round"):
        slots, mean = series.labels.get("slots"), median(series.values)
        lines.append(
            f"{slots} slots: a round is that of one slot; its phases are those of an iteration of {series.build}'s "
            f"loop, which verified {mean:.2f} drafts on average and did each phase once for all."
        )
    drafted = {s.build for s in record.select("round_ms") if s.labels.get("drafter") != PLAIN}
    unknown = [b for b in _builds(record) if b in drafted and not any(record.select("phase_ms", b))]
    if unknown:
        lines.append(f"The phases of a round of {' and '.join(unknown)} are unknown: the build does not report them.")
    return lines


def _builds(record: Record) -> list[str]:
    return [build for build in record.builds() if build != FLOOR]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"
