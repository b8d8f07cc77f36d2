"""What a measurement leaves behind: one JSON document with every sample and all conditions.

    {"schema": "bench-dflash/1", "kind": "cost" | "run",
     "conditions": {...}, "series": [{"name", "build", "labels", "unit", "values"}], "answers": [...], "notes": [...]}

Samples are kept as they were taken; medians and spreads are computed when they are shown. What was not measured has no
series: unknown is never 0. Two records compare only when their conditions agree (`unlike`), but for those that say when
and with which build it was measured.

Names that the reports know (`report.py`, `plots.py`); a record may hold others, which appear in its tables only.
Labels in brackets may be left out; `shape`, `context`, `kv`, `slots` may be added to any of them.

    step_ms        ms     rows                          one step of the target
    phase_ms       ms     phase, [acceptance]           mean per round; phase is one of PHASES
    round_ms       ms     [acceptance]                  mean per round
    tokens_per_round  tokens  [acceptance]              of one slot, the target's own included
    drafts_per_round  drafts  [acceptance]              verified in one iteration of a server with several slots
    decode_rate    tok/s  drafter, [acceptance]         tokens after the first over the time after the prompt;
                                                        drafter is "none" for plain decoding
    prefill_rate   tok/s  tokens, drafter
    memory         MiB    part, drafter
    copy_rate      GB/s                                 memory bandwidth a copy reaches

of a `run`, all with the labels suite, prompt, temperature, thinking, template, one value per repeat:

    decode_rate, decode_ms, ttft_ms, stream_rate, tokens, steps, drafted, accepted, rounds, phase_ms
    accepted_at    count  position                      rounds in which the draft of that position (from 1) was accepted
    equal          0 / 1                                greedy text equal to the same build without drafter
    difference_at, difference_margin  token, nats       where two greedy texts part, and how near a tie that was
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dflash_tools.errors import UserError

SCHEMA = "bench-dflash/1"
KINDS = ("cost", "run")
PHASES = ("draft", "inject", "verify", "sample", "commit", "other")
PLAIN = "none"

# How notes begin that say that a measurement is not whole; `bench-dflash` then ends with status 1.
BROKEN_OFF, FAILED = "broken off: ", "failed: "

# Conditions that two records may differ in: they name what is compared, or say when it happened.
FREE_CONDITIONS = ("builds", "command", "started", "seconds", "repeats", "tool", "disturbances", "host")

# What the reports look up without asking; numbers among them are checked to be numbers.
_LABELS_OF = {
    "step_ms": ("rows",),
    "phase_ms": ("phase",),
    "prefill_rate": ("tokens",),
    "memory": ("part",),
    "accepted_at": ("position",),
}
_NUMBERS = ("rows", "tokens", "position")
_CONDITION_TYPES = {"baselines": dict, "disturbances": list}

_LARGEST = 1 << 30
_MOST = 1e15  # no quantity comes near it, and sums of such numbers stay finite
_COUNT = re.compile(r"\d{1,9}")


@dataclass(frozen=True)
class Series:
    """All samples of one quantity: `name` of `build` under `labels`, in `unit`, in the order they were taken.

    `name` says what was measured (`decode_rate`), `build` which side it is of (`fork`, `upstream`, `fork+dflash`),
    `labels` what it was measured at (`{"rows": "16"}`).
    """

    name: str
    build: str
    unit: str
    values: tuple[float, ...]
    labels: Mapping[str, str] = field(default_factory=dict)

    def has(self, **labels: object) -> bool:
        """True when every given label has that value (compared as text)."""
        return all(self.labels.get(name) == str(value) for name, value in labels.items())


@dataclass(frozen=True)
class Answer:
    """One text that a build gave, kept so that a reader can judge what was measured."""

    build: str
    labels: Mapping[str, str]
    text: str
    finish: str


@dataclass
class Record:
    """One measurement. `conditions` may nest; `notes` are sentences for the reader, disturbances among them."""

    kind: str
    conditions: dict[str, Any] = field(default_factory=dict)
    series: list[Series] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _places: dict[tuple, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def add(self, name: str, build: str, unit: str, values: Sequence[float], **labels: object) -> Series:
        """Append the samples of one quantity. Samples of the same name, build, unit and labels are joined."""
        texts = {key: str(value) for key, value in labels.items()}
        numbers = tuple(float(value) for value in values)
        if len(self._places) != len(self.series):
            self._places = {_place(s.name, s.build, s.unit, s.labels): i for i, s in enumerate(self.series)}
        place = self._places.setdefault(_place(name, build, unit, texts), len(self.series))
        if place == len(self.series):
            self.series.append(Series(name, build, unit, numbers, texts))
        else:
            old = self.series[place]
            self.series[place] = Series(name, build, unit, old.values + numbers, texts)
        return self.series[place]

    def select(self, name: str, build: str | None = None, **labels: object) -> Iterator[Series]:
        """Series of that name (and build, and labels), in the order they were added."""
        for series in self.series:
            if series.name == name and build in (None, series.build) and series.has(**labels):
                yield series

    def builds(self) -> list[str]:
        """Names of the measured sides, in the order they first appear."""
        return list(dict.fromkeys(series.build for series in self.series))


def _place(name: str, build: str, unit: str, labels: Mapping[str, str]) -> tuple:
    return name, build, unit, *sorted(labels.items())


def write(record: Record, path: Path) -> None:
    """Write `record` as JSON; it appears under `path` only when it is complete. Series without samples are left out.

    Raises ValueError for a sample that is not a finite number: that is a mistake of the program.
    """
    document = {
        "schema": SCHEMA,
        "kind": record.kind,
        "conditions": record.conditions,
        "series": [
            {"name": s.name, "build": s.build, "labels": dict(s.labels), "unit": s.unit, "values": list(s.values)}
            for s in record.series
            if s.values
        ],
        "answers": [
            {"build": a.build, "labels": dict(a.labels), "finish": a.finish, "text": a.text} for a in record.answers
        ],
        "notes": record.notes,
    }
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    replace_text(path, text)


def replace_text(path: Path, text: str) -> None:
    """Write a file under a temporary name beside `path` and rename it. Raises UserError when that fails."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A text cut inside a character leaves half a surrogate pair, which UTF-8 cannot hold.
        part.write_text(text, "utf-8", errors="replace")
        part.replace(path)
    except OSError as cause:
        part.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({cause.strerror})") from cause


def read(path: Path) -> Record:
    """Read a record. Raises UserError, naming the file and the key, for anything that is not one."""
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{path}: {path.stat().st_size} bytes, too large for a record (at most {_LARGEST})")
        document = json.loads(path.read_bytes(), parse_constant=_no_constant)
    except OSError as cause:
        raise UserError(f"{path}: cannot be read ({cause.strerror})") from cause
    except (ValueError, RecursionError) as cause:
        raise UserError(f"{path}: is no JSON ({cause}); expected a record that bench-dflash wrote") from cause
    return _record(document, str(path))


def flat(conditions: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested conditions with dotted names: `{"gpu": {"name": "H100"}}` -> `{"gpu.name": "H100"}`."""
    found: dict[str, Any] = {}
    for name, value in conditions.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def unlike(one: Record, two: Record, allowed: Sequence[str] = ()) -> list[str]:
    """Sentences that name each condition in which the records differ, without the free and the allowed ones.

    An allowed name also allows what is nested under it (`gpu` allows `gpu.name`).
    """
    if one.kind != two.kind:
        return [f"kind: {one.kind} and {two.kind}"]
    free = (*FREE_CONDITIONS, *allowed)
    mine, theirs = flat(one.conditions), flat(two.conditions)
    absent = object()
    return [
        f"{name}: {_shown(mine, name)} and {_shown(theirs, name)}"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name, absent) != theirs.get(name, absent)
        and not any(name == f or name.startswith(f + ".") for f in free)
    ]


def _shown(conditions: Mapping[str, Any], name: str) -> str:
    return json.dumps(conditions[name], ensure_ascii=False) if name in conditions else "not stated"


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _record(document: Any, where: str) -> Record:
    found = _typed(document, dict, where, "the document")
    if found.get("schema") != SCHEMA:
        raise UserError(
            f"{where}: schema is {found.get('schema')!r}, expected {SCHEMA!r}: it was not written by this bench-dflash"
        )
    if found.get("kind") not in KINDS:
        raise UserError(f"{where}: kind is {found.get('kind')!r}, expected one of {', '.join(KINDS)}")
    conditions = _typed(found.get("conditions"), dict, where, "conditions")
    for name, kind in _CONDITION_TYPES.items():
        if name in conditions:
            _typed(conditions[name], kind, where, f"conditions.{name}")
    for side, baseline in conditions.get("baselines", {}).items():
        _typed(baseline, str, where, f"conditions.baselines.{side}")
    return Record(
        kind=found["kind"],
        conditions=conditions,
        series=[_series(s, where, f"series[{i}]") for i, s in _items(found, "series", where)],
        answers=[_answer(a, where, f"answers[{i}]") for i, a in _items(found, "answers", where, optional=True)],
        notes=[_typed(n, str, where, f"notes[{i}]") for i, n in _items(found, "notes", where)],
    )


def _items(found: Mapping[str, Any], key: str, where: str, *, optional: bool = False) -> Iterator[tuple[int, Any]]:
    return enumerate(_typed(found.get(key, [] if optional else None), list, where, key))


def _series(found: Any, where: str, name: str) -> Series:
    fields = _typed(found, dict, where, name)
    values = []
    for i, value in _items({f"{name}.values": fields.get("values")}, f"{name}.values", where):
        try:
            number = math.nan if isinstance(value, bool | str) else float(value)
        except (TypeError, OverflowError):
            number = math.nan
        if not abs(number) <= _MOST:
            raise UserError(f"{where}: {name}.values[{i}] is {str(value)[:40]}, expected a finite number")
        values.append(number)
    if not values:
        raise UserError(f"{where}: {name}.values is empty; what was not measured has no series")
    quantity = _typed(fields.get("name"), str, where, f"{name}.name")
    labels = _labels(fields, where, name)
    for label in _LABELS_OF.get(quantity, ()):
        if label not in labels or (label in _NUMBERS and not _COUNT.fullmatch(labels[label])):
            told = repr(labels[label][:40]) if label in labels else "not there"
            expected = "a number from 0" if label in _NUMBERS else "a text"
            raise UserError(f"{where}: {name} ({quantity}): label {label} is {told}, expected {expected}")
    return Series(
        name=quantity,
        build=_typed(fields.get("build"), str, where, f"{name}.build"),
        unit=_typed(fields.get("unit"), str, where, f"{name}.unit"),
        values=tuple(values),
        labels=labels,
    )


def _answer(found: Any, where: str, name: str) -> Answer:
    fields = _typed(found, dict, where, name)
    return Answer(
        build=_typed(fields.get("build"), str, where, f"{name}.build"),
        labels=_labels(fields, where, name),
        text=_typed(fields.get("text"), str, where, f"{name}.text"),
        finish=_typed(fields.get("finish"), str, where, f"{name}.finish"),
    )


def _labels(fields: Mapping[str, Any], where: str, name: str) -> dict[str, str]:
    labels = _typed(fields.get("labels", {}), dict, where, f"{name}.labels")
    return {key: _typed(value, str, where, f"{name}.labels.{key}") for key, value in labels.items()}


def _typed(value: Any, kind: type, where: str, name: str) -> Any:
    if not isinstance(value, kind):
        raise UserError(f"{where}: {name} is {type(value).__name__}, expected {kind.__name__}")
    return value
