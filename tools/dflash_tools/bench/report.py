"""A record as tables and sentences, for the terminal, as Markdown, and for the page (page.py)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dflash_tools.bench.cost_table import cost_tables, remarks, usual
from dflash_tools.bench.record import Record, flat
from dflash_tools.bench.stats import LEVEL, Interval
from dflash_tools.bench.summary import ALL, LuceRow, Row, luce_rows, prompt_rows, suite_rows
from dflash_tools.table import table

UNKNOWN = "-"
_FEW = 12
_KV = re.compile(r"(^| )(-ctk|--cache-type-k)\b")
_BRIEF = (
    *(
        "shape",
        "target",
        "drafter",
        "drafters",
        "builds",
        "options",
        "server options",
        "temperature",
        "threads",
        "suites",
        "max_tokens",
        "sampling",
        "repeats",
    ),
    *("interleave", "machine", "started"),
)
_NOT_BRIEF = ("bytes", "digest")


@dataclass(frozen=True)
class Section:
    """A title with a table, sentences, or both. `detail` sections are not for the terminal, and folded on the page."""

    title: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    text: str = ""
    detail: bool = False


def title(record: Record) -> str:
    what = {"cost": "what a round costs", "run": "what a drafter brings"}[record.kind]
    target = record.conditions.get("target")
    name = (target.get("file") if isinstance(target, dict) else None) or record.conditions.get("shape")
    return f"{name}: {what}" if name else what[0].upper() + what[1:]


def disturbances(record: Record) -> list[str]:
    """Sentences about what disturbed the measurement; shown before any number."""
    return [str(what) for what in record.conditions.get("disturbances", ())]


def brief(record: Record) -> list[str]:
    """The conditions that belong beside every number, a line each."""
    lines = []
    for name in _BRIEF:
        found = record.conditions.get(name)
        if isinstance(found, dict):
            shown = {key: value for key, value in flat(found).items() if key.rpartition(".")[2] not in _NOT_BRIEF}
            found = ", ".join(f"{key} {_condition(value)}" for key, value in shown.items() if value not in ("", []))
        if found not in (None, "", []):
            lines.append(f"{name}: {_condition(found)}")
    if record.kind == "cost":
        lines.append(f"measured: {usual(record)}")
    elif record.conditions.get("target") and not _KV.search(str(record.conditions.get("options", ""))):
        lines.append("KV: f16, as no option says otherwise")
    return lines


def sections(record: Record) -> list[Section]:
    """Everything there is to say about a record, the most important first."""
    body = _cost_sections(record) if record.kind == "cost" else _run_sections(record)
    notes = [note for note in record.notes if not note.startswith("disturbed: ")]
    conditions = tuple((name, _condition(value)) for name, value in flat(record.conditions).items())
    return [
        *body,
        *([Section("Notes", text="\n".join(notes))] if notes else []),
        Section("Conditions", ("condition", "value"), conditions, detail=True),
    ]


def terminal(record: Record) -> str:
    """The report without its details."""
    warnings = [f"DISTURBED: {what}" for what in disturbances(record)]
    return blocks("\n".join([title(record), *warnings, *brief(record)]), sections(record))


def blocks(heading: str, found: Sequence[Section]) -> str:
    """Sections as text for the terminal, without details and with only the first of many sentences."""
    parts = [heading]
    for section in found:
        if not section.detail:
            lines = section.text.splitlines()
            few = [*lines[:_FEW], f"... and {len(lines) - _FEW} more"] if len(lines) > _FEW else lines
            shown = [table(section.header, section.rows)] if section.rows else []
            parts.append("\n".join([section.title, *shown, *few]))
    return "\n\n".join(parts)


def markdown(record: Record) -> str:
    """The whole report."""
    lines = [f"# {_escaped(title(record))}", ""]
    lines += [f"> **Disturbed:** {_escaped(what)}\n" for what in disturbances(record)]
    lines += [*(f"- {_escaped(line)}" for line in brief(record)), ""]
    for section in sections(record):
        lines += [f"## {_escaped(section.title)}", ""]
        if section.rows:
            lines += ["| " + " | ".join(map(_escaped, row)) + " |" for row in (section.header,)]
            lines += ["|" + "---|" * len(section.header)]
            lines += ["| " + " | ".join(map(_escaped, row)) + " |" for row in section.rows]
            lines += [""]
        for line in section.text.splitlines():
            lines += [f"- {_escaped(line)}" if "\n" in section.text else _escaped(line)]
        lines += [""] if section.text else []
    return "\n".join(lines).rstrip() + "\n"


def number(value: float | None, form: str = ".1f") -> str:
    return UNKNOWN if value is None else f"{value:{form}}"


def interval(found: Interval | None) -> str:
    return UNKNOWN if found is None else str(found)


def _run_sections(record: Record) -> list[Section]:
    rows = suite_rows(record)
    settings = list(dict.fromkeys(row.setting_text for row in rows))
    found = []
    for setting in settings:
        mine = [row for row in rows if row.setting_text == setting]
        suites = [row.suite for row in mine]
        mine = sorted(mine, key=lambda row: suites.index(row.suite))
        greedy = any(row.equal for row in mine)
        header, cells = _suite_columns(mine, greedy)
        found.append(Section(f"By suite: {setting}", header, cells, _suite_text(mine)))
    found += _position_sections(rows)
    found += _phase_sections(rows)
    if luce := luce_rows(record):
        found.append(_luce_section(luce))
    found.append(_prompt_section(record))
    return found


def _suite_columns(rows: Sequence[Row], greedy: bool) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("suite", lambda r: r.suite),
        ("side", lambda r: r.build),
        ("prompts", lambda r: str(r.prompts)),
        ("tok/s", lambda r: number(r.rate) + ("*" if r.by_client and r.rate is not None else "")),
        ("speed-up", lambda r: interval(r.speedup)),
        ("AL", lambda r: number(r.al, ".2f")),
        ("rounds/s", lambda r: number(r.rounds_per_second)),
        ("first token, ms", lambda r: number(r.ttft_ms)),
        *([("equal", lambda r: f"{r.equal[0]}/{r.equal[1]}" if r.equal else UNKNOWN)] if greedy else []),
    ]
    return tuple(name for name, _ in columns), tuple(tuple(show(row) for _, show in columns) for row in rows)


def _suite_text(rows: Sequence[Row]) -> str:
    lines = [f"Speed-up over the side's own baseline, with its {LEVEL:.0%} interval over prompts and passes."]
    if unchecked := list(dict.fromkeys(row.build for row in rows if row.speedup and not row.equal)):
        why = "" if rows[0].setting["temperature"] == "0" else ": sampled texts are not compared"
        lines.append(f"Speed without equality: the texts of {', '.join(unchecked)} were not checked here{why}.")
    if any(row.by_client and row.rate is not None for row in rows):
        lines.append("* by the clock of this process; the others by the server's.")
    if short := sum(row.short for row in rows if row.suite != ALL):
        lines.append(f"{short} answers ended with their first token, told no count or came at once, and have no rate.")
    return "\n".join(lines)


def _position_sections(rows: Sequence[Row]) -> list[Section]:
    known = [row for row in rows if row.accepted_at]
    if not known:
        return []
    last = max(len(row.accepted_at or ()) for row in known)
    settings = [row.setting_text for row in rows]
    known.sort(key=lambda row: settings.index(row.setting_text))
    cells = tuple(
        (row.setting_text, row.suite, row.build, *(f"{share:.2f}" for share in row.accepted_at or ()),
         *([UNKNOWN] * (last - len(row.accepted_at or ()))))
        for row in known
    )  # fmt: skip
    text = "Share of all rounds in which the draft of that position was accepted."
    return [Section("Acceptance by position", ("setting", "suite", "side", *map(str, range(1, last + 1))), cells, text)]


def _phase_sections(rows: Sequence[Row]) -> list[Section]:
    known = [row for row in rows if row.phases]
    drafted = [row.build for row in rows if row.rounds_per_second is not None and not row.phases]
    found = []
    if known:
        names = tuple(known[0].phases or ())
        cells = tuple(
            (row.setting_text, row.suite, row.build, *(f"{row.phases[name]:.2f}" for name in names),
             f"{sum(row.phases.values()):.2f}")
            for row in known if row.phases
        )  # fmt: skip
        header = ("setting", "suite", "side", *names, "round")
        text = "'other' is the host's gap: the round less the named phases."
        found.append(Section("Time of a round by phase, ms", header, cells, text))
    if drafted:
        names = ", ".join(dict.fromkeys(drafted))
        found.append(Section("Phases", text=f"The phases of a round of {names} are unknown: the server does not tell."))
    return found


def _luce_section(rows: Sequence[LuceRow]) -> Section:
    names = {"code": "HumanEval", "maths": "GSM8K sample"}
    cells = tuple(
        (names[r.suite], r.build, str(r.prompts), f"{r.plain_rate:.1f}", f"{r.rate:.1f}", f"{r.speedup:.2f}x",
         f"{r.al:.2f}")
        for r in rows
    )  # fmt: skip
    text = (
        "Raw prompts, greedy: means over prompts of each prompt's tok/s, ratio of the means, and AL with the first "
        "token counted. HumanEval's first ten are those of Luce's tables; of GSM8K another sample."
    )
    return Section(
        "As Luce's RESULTS count", ("set", "side", "prompts", "tok/s plain", "tok/s", "speed-up", "AL"), cells, text
    )


def _prompt_section(record: Record) -> Section:
    rows = prompt_rows(record)
    header, cells = _suite_columns([row for _, row in rows], greedy=True)
    named = tuple(
        (row.setting_text, f"{row.suite}/{prompt}", *line[1:2], *line[3:])
        for (prompt, row), line in zip(rows, cells, strict=True)
    )
    return Section("By prompt", ("setting", "prompt", *header[1:2], *header[3:]), named, detail=True)


def _cost_sections(record: Record) -> list[Section]:
    tables, said = cost_tables(record), remarks(record)
    found = [Section("Remarks", text="\n".join(said))] if said else []
    return found + [Section(header[0], ("at", *header[1:]), tuple(map(tuple, rows))) for header, rows in tables]


def _condition(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
