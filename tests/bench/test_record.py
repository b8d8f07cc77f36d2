"""A record says what it holds, survives a round trip, and is refused when it is damaged or unlike another."""

from __future__ import annotations

import json

import pytest
from bench_records import toy_run
from dflash_tools.bench.record import Answer, Record, read, unlike, write
from dflash_tools.errors import UserError


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = toy_run()
    record.answers.append(Answer("plain", {"suite": "code"}, "naïve 🙂\n", "eos"))
    record.notes.append("left out: nothing")
    write(record, tmp_path / "new" / "a.json")
    assert read(tmp_path / "new" / "a.json") == record


def test_half_a_character_at_the_end_of_a_text_does_not_lose_the_record(tmp_path):
    record = Record("run", answers=[Answer("plain", {}, "cut \ud83d", "limit")])
    write(record, tmp_path / "a.json")
    assert read(tmp_path / "a.json").answers[0].text.startswith("cut ")


def test_samples_of_the_same_place_are_joined():
    record = Record("cost")
    record.add("step_ms", "fork", "ms", [1, 2], rows=4)
    record.add("step_ms", "fork", "ms", [9], rows=8)
    record.add("step_ms", "fork", "ms", [3], rows=4)
    assert [(s.labels, s.values) for s in record.series] == [({"rows": "4"}, (1, 2, 3)), ({"rows": "8"}, (9,))]


def test_samples_are_joined_in_a_record_that_was_read_or_cut():
    record = Record("cost")
    for rows in (1, 2, 4):
        record.add("step_ms", "fork", "ms", [rows], rows=rows)
    del record.series[0]
    record.add("step_ms", "fork", "ms", [5], rows=4)
    assert [s.values for s in record.series] == [(2,), (4, 5)]


def test_a_sample_that_is_no_number_is_not_written(tmp_path):
    record = Record("cost")
    record.add("step_ms", "fork", "ms", [float("nan")])
    with pytest.raises(ValueError, match="JSON"):
        write(record, tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def damaged(change) -> bytes:
    document = {
        "schema": "bench-dflash/1",
        "kind": "run",
        "conditions": {},
        "series": [{"name": "tokens", "build": "plain", "labels": {}, "unit": "count", "values": [1]}],
        "notes": [],
    }
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x1f\x8b\x08", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[]", "the document is list, expected dict"),
        (damaged(lambda d: d.update(schema="bench-dflash/9")), "schema is 'bench-dflash/9'"),
        (damaged(lambda d: d.update(kind="guess")), "kind is 'guess'"),
        (damaged(lambda d: d.pop("conditions")), "conditions is NoneType"),
        (
            damaged(lambda d: d["series"][0].update(values=[1, "2"])),
            r"series\[0\]\.values\[1\] is 2, expected a",
        ),
        (damaged(lambda d: d["series"][0].update(values=[True])), r"values\[0\] is True"),
        (damaged(lambda d: d["series"][0].update(values=[10**400])), r"values\[0\] is 1000"),
        (damaged(lambda d: d["series"][0].update(labels={"rows": 4})), r"series\[0\]\.labels\.rows is int"),
        (damaged(lambda d: d["series"].append(7)), r"series\[1\] is int"),
        (damaged(lambda d: None).replace(b"[1]", b"[NaN]"), "NaN is not a number"),
    ],
)
def test_a_damaged_record_is_refused_and_named(content, said, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as refused:
        read(path)
    assert str(path) in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json: cannot be read"):
        read(tmp_path / "nowhere.json")


def test_unlike_conditions_are_named_and_free_ones_are_not():
    one = Record("run", {"machine": {"gpus": ["H100"], "driver": "580"}, "max_tokens": 256, "builds": {"fork": "1"}})
    two = Record("run", {"machine": {"gpus": ["3090"], "driver": "580"}, "seed": 1, "builds": {"fork": "2"}})
    assert unlike(one, two) == [
        'machine.gpus: ["H100"] and ["3090"]',
        "max_tokens: 256 and not stated",
        "seed: not stated and 1",
    ]
    assert unlike(one, two, ["machine", "seed"]) == ["max_tokens: 256 and not stated"]
    assert unlike(one, one) == []


def test_an_allowed_name_does_not_allow_names_that_begin_alike():
    assert unlike(Record("run", {"seeds": 1}), Record("run", {"seeds": 2}), ["seed"]) == ["seeds: 1 and 2"]


def test_records_of_another_kind_are_unlike():
    assert unlike(Record("run"), Record("cost")) == ["kind: run and cost"]
