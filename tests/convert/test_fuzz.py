"""The first 2,000 runs of `fuzz.py`, and that it would find something."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz import SEED, Case, flip, fuzz, make_cases

RUNS = 2000


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return make_cases(tmp_path_factory.mktemp("cases"))


@pytest.mark.filterwarnings("ignore")
def test_damaged_input_is_read_or_refused_and_nothing_else(cases: list[Case], tmp_path: Path) -> None:
    found = fuzz(cases, range(RUNS), SEED, tmp_path)
    assert not found.places, "\n\n".join([f"seed {SEED}", *found.places.values()])
    for case in cases:
        if not case.name.startswith("check "):  # a report, always
            assert found.outcomes[f"{case.name}: refused"] > 0, f"{case.name}: no damage was noticed"


@pytest.mark.parametrize(
    ("crime", "said"),
    [
        (lambda path: {}["x"], "KeyError"),
        (lambda path: os.system("true"), "tried to start something: os.system"),
        (lambda path: bytearray(1 << 40), "MemoryError"),
        (lambda path: (path / "half").write_bytes(b""), "left behind: ['half']"),
    ],
)
def test_it_finds(crime: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    found = fuzz([Case("x", {"f": b"data"}, [("f", flip)], crime)], range(1), SEED, tmp_path)
    assert said in "".join(found.places.values())
