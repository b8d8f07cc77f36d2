"""Records are compared when they were measured alike, and refused by name when not."""

from __future__ import annotations

import copy

import pytest
from bench_records import GREEDY, add_prompt, run_record, toy_cost, toy_run
from dflash_tools.bench.cli import main
from dflash_tools.bench.compare import compare
from dflash_tools.bench.cost_table import FLOOR
from dflash_tools.bench.record import Answer, write
from dflash_tools.errors import UserError

NAMES = ("a.json", "b.json")


def cells(sections) -> dict[tuple[str, ...], tuple[str, ...]]:
    return {row[:3]: row[3:] for row in sections[0].rows}


def test_another_model_is_refused_by_name():
    two = toy_run()
    two.conditions["target"] = {"file": "other.gguf"}
    with pytest.raises(UserError, match=r'target\.file: "toy\.gguf" and "other\.gguf"(.|\n)*--allow'):
        compare(toy_run(), two, NAMES)
    allowed = compare(toy_run(), two, NAMES, ["target"])
    assert 'allowed to differ: target.file: "toy.gguf" and "other.gguf"' in allowed[-1].text


def test_every_difference_is_named_at_once():
    two = toy_run()
    two.conditions |= {"max_tokens": 9, "machine": {"driver": "1"}}
    with pytest.raises(UserError, match=r"machine\.driver(.|\n)*max_tokens"):
        compare(toy_run(), two, NAMES)


def test_records_of_different_commands_are_refused_whatever_is_allowed():
    with pytest.raises(UserError, match=r"a\.json is of bench-dflash run and b\.json of bench-dflash cost"):
        compare(toy_run(), toy_cost(), NAMES, ["kind", "target", "shape", "baselines"])


def test_a_floor_is_not_compared_as_if_it_had_been_measured():
    record = toy_cost()
    record.add("step_ms", FLOOR, "ms", [5.0], rows=1)
    assert {row[1] for row in compare(record, record, NAMES)[0].rows} == {"fork", "upstream"}


def test_records_of_the_same_name_are_told_apart(tmp_path, capsys):
    one, two = toy_cost(), toy_cost()
    two.conditions["shape"] = "other"
    for folder, record in (("a", one), ("b", two)):
        write(record, tmp_path / folder / "record.json")
    assert main(["compare", *(str(tmp_path / folder / "record.json") for folder in "ab")]) == 1
    assert f"{tmp_path}/a/record.json and {tmp_path}/b/record.json were not" in capsys.readouterr().err


def test_a_faster_build_is_faster_by_its_ratio():
    one, two = toy_run(), toy_run()
    two.conditions["builds"] = {"fork": "newer"}
    two.series = [
        type(s)(s.name, s.build, s.unit, tuple(v / 2 for v in s.values), s.labels) if s.name == "decode_ms" else s
        for s in two.series
    ]
    found = cells(compare(one, two, NAMES))
    setting = "chat, temperature 0, thinking default"
    assert found["code", "drafted", setting] == ("200.0", "400.0", "tok/s", "2.00x [2.00, 2.00]", "faster")
    assert ("all", "plain", setting) in found
    assert "b.json: fork is newer" in compare(one, two, NAMES)[-1].text


def test_noise_is_no_difference():
    one, two = run_record(), run_record()
    add_prompt(one, "plain", "a", [101] * 3, [1000.0, 900.0, 1100.0])
    add_prompt(two, "plain", "a", [101] * 3, [1010.0, 890.0, 1090.0])
    assert next(iter(cells(compare(one, two, NAMES)).values()))[-1] == "within noise"


def test_costs_are_compared_sample_by_sample():
    one, two = toy_cost(), copy.deepcopy(toy_cost())
    two.series[0] = type(two.series[0])("step_ms", "fork", "ms", (22.0,) * 3, two.series[0].labels)
    found = cells(compare(one, two, NAMES))
    assert found["step_ms", "fork", "rows 1, context 0"] == ("11", "22", "ms", "2.00x [2.00, 2.00]", "slower")
    assert found["step_ms", "fork", "rows 4, context 0"][-1] == "within noise"


def test_prompts_that_one_record_left_out_are_left_out_of_both():
    one, two = run_record(), run_record()
    for record, prompts in ((one, "ab"), (two, "bc")):
        for prompt in prompts:
            add_prompt(record, "plain", prompt, [101], [1000.0 if prompt == "b" else 1.0])
    assert cells(compare(one, two, NAMES))["code", "plain", "chat, temperature 0, thinking default"][:2] == (
        "100.0",
        "100.0",
    )


def test_texts_that_changed_are_named():
    one, two = toy_run(), toy_run()
    labels = {"suite": "code", "prompt": "a", **GREEDY}
    one.answers = [Answer("plain", labels, "x = 1", "eos")]
    two.answers = [Answer("plain", labels, "x = 2", "eos")]
    texts = next(section for section in compare(one, two, NAMES) if section.title == "Texts")
    assert texts.text == "0 of 1 greedy texts are the same in a.json and b.json.\ndiffers: plain, code/a"


def test_disturbances_of_both_are_said():
    one, two = toy_run(), toy_run()
    two.conditions["disturbances"] = ["other processes kept 1.0 of 2 cores busy on average"]
    assert "b.json was disturbed: other processes" in compare(one, two, NAMES)[-1].text


def test_records_without_a_common_side_are_refused():
    with pytest.raises(UserError, match="no quantity of the same side in common"):
        compare(toy_run(), run_record(), NAMES)


def test_the_command_compares_files_and_exits_with_1_for_unlike_ones(tmp_path, capsys):
    one, two = toy_run(), toy_run()
    one.conditions["repeats"], two.conditions["repeats"] = 2, 9
    write(one, tmp_path / "a.json")
    write(two, tmp_path / "b.json")
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    heading, _, tables = capsys.readouterr().out.partition("\n\n")
    assert "1.00x [1.00, 1.00]" in tables
    assert "target: file toy.gguf" in heading, "what both were measured under stands before the numbers"
    assert "repeats" not in heading
    two.conditions["max_tokens"] = 7
    write(two, tmp_path / "b.json")
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    assert "max_tokens: not stated and 7" in capsys.readouterr().err
    assert main(["compare", "--allow", "max_tokens", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0


def test_show_writes_the_reports_again(tmp_path, capsys):
    write(toy_run(), tmp_path / "a.json")
    assert main(["show", str(tmp_path / "a.json"), "--out", str(tmp_path / "again")]) == 0
    assert "By suite: chat, temperature 0" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "again.html", "again.md"]
