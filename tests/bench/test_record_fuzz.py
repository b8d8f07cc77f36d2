"""Whatever stands in a record, the commands show it or refuse it by name: no traceback, no half-written report."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from bench_records import toy_cost, toy_run
from dflash_tools.bench import stats
from dflash_tools.bench.compare import compare
from dflash_tools.bench.page import page
from dflash_tools.bench.record import Record, read, write
from dflash_tools.bench.report import markdown, terminal
from dflash_tools.errors import UserError

ODD: tuple[Any, ...] = (
    None,
    0,
    -1,
    1e308,
    -1e-300,
    10**30,
    True,
    "",
    "x",
    "-5",
    "9" * 30,
    [],
    [0],
    {},
    {"a": 1},
    "\0<b>|",
)
ROUNDS = 60


def places(found: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document."""
    inner = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def spoilt(document: Any, rng: random.Random) -> Any:
    """A copy with one to three places removed, replaced or doubled."""
    changed = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        *way, last = rng.choice(places(changed)[1:])
        inside = changed
        for key in way:
            inside = inside[key]
        action = rng.randrange(3)
        if action == 0:
            del inside[last]
        elif action == 1 and isinstance(inside, list):
            inside.append(inside[last])
        else:
            inside[last] = copy.deepcopy(rng.choice(ODD))
    return changed


@pytest.mark.parametrize("record", [toy_run(), toy_cost()], ids=["run", "cost"])
def test_a_spoilt_record_is_shown_or_refused(record: Record, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(stats, "DRAWS", 20)
    record.conditions |= {"builds": {"fork": "1"}, "disturbances": ["noise"]}
    path = tmp_path / "a.json"
    write(record, path)
    document = json.loads(path.read_text())
    shown = refused = 0
    for seed in range(ROUNDS):
        path.write_text(json.dumps(spoilt(document, random.Random(seed))))
        try:
            found = read(path)
            for show in (terminal, markdown, page):
                assert show(found), f"seed {seed}"
            compare(record, found, ("a", "b"), list(found.conditions) + list(record.conditions))
            shown += 1
        except UserError as said:
            refused += 1
            assert str(said), f"seed {seed}"
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert shown > ROUNDS / 10
    assert refused > ROUNDS / 10
