"""The table of formats in docs/formats.md, made from the marks of the tests that prove it.

    python tests/family_table.py            rewrite the table
    python tests/family_table.py --check    exit status 1 if the page differs from what the tests say

A test states with `@pytest.mark.family(name, converts=..., runs=..., parity=..., upstream=...)` what it asserts of one
format. Collecting the tests is enough here: whether they pass is for the lanes that run them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "formats.md"
COLLECTED = ("convert", "parity", "server")
COLUMNS = {
    "converts": "converts",
    "runs": "runs in the fork",
    "parity": "drafts equal the reference",
    "upstream": "upstream today",
}
BEGIN, END = "<!-- made by tests/family_table.py: begin -->", "<!-- end -->"

Marks = dict[str, dict[str, str]]


class _Collector:
    def __init__(self) -> None:
        self.marks: Marks = {}
        self.problems: list[str] = []

    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        for item in items:
            for mark in item.iter_markers("family"):
                self.add(item.nodeid, mark)

    def add(self, test: str, mark: pytest.Mark) -> None:
        if len(mark.args) != 1 or not mark.kwargs or not mark.kwargs.keys() <= COLUMNS.keys():
            self.problems.append(f"{test}: family(name, {'=, '.join(COLUMNS)}=) expected, found {mark}")
            return
        row = self.marks.setdefault(mark.args[0], {})
        for column, text in mark.kwargs.items():
            if row.setdefault(column, text) != text:
                self.problems.append(f"{test}: {mark.args[0]}, {column} is {text!r}; another test says {row[column]!r}")


def collect_marks() -> Marks:
    """What the tests say, by format and column. Raises SystemExit if they cannot be collected or disagree."""
    found = _Collector()
    folders = [str(TESTS / name) for name in COLLECTED]
    status = pytest.main(["--collect-only", "-qq", "-p", "no:xdist", *folders], plugins=[found])
    if status != pytest.ExitCode.OK:
        raise SystemExit(f"family_table: the tests cannot be collected ({status.name})")
    for row, cells in found.marks.items():
        if missing := [column for column in COLUMNS if column not in cells]:
            found.problems.append(f"{row}: no test says {', '.join(missing)}")
    if found.problems:
        raise SystemExit("\n".join(found.problems))
    return found.marks


def render(marks: Marks) -> str:
    """The Markdown table, rows in order of their names."""
    lines = ["| format | " + " | ".join(COLUMNS.values()) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name in sorted(marks, key=str.lower):
        lines.append(f"| {name} | " + " | ".join(marks[name].get(column, "") for column in COLUMNS) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    args = parser.parse_args(argv)
    page = PAGE.read_text("utf-8")
    if page.count(BEGIN) != 1 or END not in page.split(BEGIN)[1]:
        raise SystemExit(f"{PAGE}: the lines {BEGIN} and {END} are not both there")
    before, rest = page.split(BEGIN)
    old, after = rest.split(END, 1)
    table = f"\n\n{render(collect_marks())}\n\n"
    if args.check:
        if old != table:
            print(f"{PAGE.name}: the table differs from the tests: run python tests/family_table.py", file=sys.stderr)
        return int(old != table)
    PAGE.write_text(before + BEGIN + table + END + after, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
