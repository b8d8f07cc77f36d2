"""A whole study on the tiny pair, from bench.toml to the page: what was planted in it is found where it was planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from dflash_tools.bench.cli import main
from dflash_tools.bench.record import Record, read
from dflash_tools.bench.summary import Row, suite_rows
from dflash_tools.tiny import MODELS
from stub_engine import Stub, serve

# The second drafter is the same file, but its server penalises what was said before: greedy text must part.
TOML = """
target = "{target}"
options = ["-c", "4096", "-np", "1", "-t", "1", "--no-warmup", "-ctk", "f32", "-ctv", "f32", "-fa", "off"]
suites = ["prose", "tools", "{prompts}"]
prompts = 2
max_tokens = 16
repeats = 2
temperatures = [0, 0.7]

[[build]]
name = "fork"
bin = "{bin_dir}"

[[drafter]]
name = "dflash"
path = "{drafter}"

[[drafter]]
name = "planted"
path = "{drafter}"
options = ["--repeat-penalty", "1.8"]

[[server]]
name = "other"
url = "{url}"
"""


@pytest.fixture(scope="module")
def study(bin_dir: Path, tiny_gguf: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished study: `run.json`, `run.md`, `run.html`."""
    folder = tmp_path_factory.mktemp("study")
    with serve(Stub()) as stub:
        text = TOML.format(
            target=tiny_gguf("qwen3", "target"),
            drafter=tiny_gguf("qwen3", "dflash"),
            prompts=MODELS / "prompts.json",
            bin_dir=bin_dir,
            url=stub.url,
        )
        (folder / "bench.toml").write_text(text, "utf-8")
        words = ["run", str(folder / "bench.toml"), "--work", str(folder / "work"), "--out", str(folder / "run")]
        assert main(words) == 0
    return folder


@pytest.fixture(scope="module")
def record(study: Path) -> Record:
    return read(study / "run.json")


@pytest.fixture(scope="module")
def rows(record: Record) -> dict[tuple[str, str, str], Row]:
    """By side, suite and temperature."""
    return {(row.build, row.suite, row.setting["temperature"]): row for row in suite_rows(record)}


def test_every_prompt_was_asked_of_every_side_as_often_as_wanted(record, rows):
    assert {(build, suite) for build, suite, _ in rows} == {
        (build, suite)
        for build in ("plain", "dflash", "planted", "other")
        for suite in ("prose", "tools", "prompts", "all")
    }
    assert all(row.prompts == (6 if row.suite == "all" else 2) for row in rows.values())
    assert all(len(series.values) == 2 for series in record.select("tokens"))


def test_text_with_a_drafter_is_that_of_plain_decoding(rows):
    assert rows["dflash", "all", "0"].equal == (12, 12)
    assert rows["dflash", "all", "0.7"].equal is None, "sampled texts are not compared"


def test_a_planted_difference_is_found_with_its_margin(record, rows):
    equal, of = rows["planted", "all", "0"].equal
    assert (equal < of, of) == (True, 12)
    differs = [note for note in record.notes if note.startswith("differs: planted, ")]
    assert len(differs) == (of - equal) / 2
    places = list(record.select("difference_at", "planted"))
    margins = list(record.select("difference_margin", "planted"))
    assert len(places) == len(differs)
    # Plain decoding took the likeliest token, so it preferred its own.
    assert margins
    assert all(value > 0 for series in margins for value in series.values)


def test_acceptance_adds_up(record, rows):
    for series in record.select("accepted", "dflash"):
        counts = [sum(s.values[i] for s in record.select("accepted_at", "dflash", **series.labels)) for i in range(2)]
        assert counts == list(series.values), series.labels
        (rounds,) = record.select("rounds", "dflash", **series.labels)
        (steps,) = record.select("steps", "dflash", **series.labels)
        assert all(few <= many for few, many in zip(rounds.values, steps.values, strict=True))
    row = rows["dflash", "all", "0"]
    assert row.al > 1.2
    assert list(row.accepted_at) == sorted(row.accepted_at, reverse=True)
    assert rows["plain", "all", "0"].al == 1.0


def test_speed_is_given_for_both_sides_of_a_ratio(rows):
    row = rows["dflash", "all", "0"]
    assert row.rate > 0
    assert row.ttft_ms > 0
    assert row.speedup.low <= row.speedup.value <= row.speedup.high
    assert row.speedup.value == pytest.approx(row.rate / rows["plain", "all", "0"].rate, rel=1e-6)


def test_another_engine_stands_beside_them_with_what_it_tells(rows):
    row = rows["other", "prose", "0"]
    assert row.by_client
    assert (row.al, row.accepted_at, row.phases, row.speedup, row.equal) == (None,) * 5


def test_conditions_name_models_options_and_prompts_but_no_path(record, study):
    conditions = record.conditions
    assert conditions["target"]["type"] == "all F32"
    assert conditions["target"]["parameters"] == 2_625_536
    assert conditions["drafters"]["planted"]["options"] == "--repeat-penalty 1.8"
    assert conditions["suites"].keys() == {"prose", "tools", "prompts"}
    assert "commit" in conditions["builds"]["fork"]
    measured = {name: value for name, value in conditions.items() if name != "command"}
    assert str(study) not in str(measured)


def test_the_reports_are_written(study):
    text = (study / "run.md").read_text("utf-8")
    assert "## By suite: chat, temperature 0.7" in text
    assert "differs: planted" in text
    page = (study / "run.html").read_text("utf-8")
    assert page.count('class="mark') > 30
    assert sorted(p.name for p in study.iterdir()) == ["bench.toml", "run.html", "run.json", "run.md", "work"]
