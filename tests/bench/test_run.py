"""Passes over sides that are made up: what they report arrives in its place, and the order is fair."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
from dflash_tools.bench import run
from dflash_tools.bench.arms import PromptRefusedError, Reply, Request, rotated
from dflash_tools.bench.page import page
from dflash_tools.bench.record import PHASES
from dflash_tools.bench.report import terminal
from dflash_tools.bench.sides import Side
from dflash_tools.bench.study import ServerSpec, Study
from dflash_tools.bench.summary import suite_rows
from dflash_tools.client import Completion, SpecTimings, Timings
from dflash_tools.errors import UserError


class Made:
    """A side that answers at once: 101 tokens in 20 rounds of `round_ms`, one phase of which may be slow."""

    own = False

    def __init__(self, name: str, log: list[str], slow: str = "", text: str = "same") -> None:
        self.name, self.log, self.slow, self.text = name, log, slow, text

    def ask(self, request: Request) -> Reply:
        self.log.append(f"{self.name} {request.prompt.id} {request.seed}")
        phases = {f"{phase}_ms": 20.0 * (9.0 if phase == self.slow else 1.0) for phase in PHASES}
        spec = SpecTimings(20, round_ms=sum(phases.values()), accepted_per_pos=(20, 20, 20, 20), **phases)
        return Reply(
            Completion(self.text, (), "stop", False, Timings()), 5.0, 100.0, 101, spec.round_ms, 7, 3.0, steps=20,
            drafted=80, accepted=80, rounds=20, accepted_per_pos=spec.accepted_per_pos, spec=spec,
        )  # fmt: skip


@pytest.fixture
def study_of(monkeypatch, tmp_path):
    """`study_of([arms], **settings)`: the record of a study whose sides are those; each is compared to the first."""

    def measure(arms: list[Made], **settings):
        @contextmanager
        def opened(arm):
            arm.log.append(f"open {arm.name}")
            yield arm
            arm.log.append(f"close {arm.name}")

        sides = [
            Side(arm.name, arms[0].name if arm is not arms[0] else "", lambda arm=arm: opened(arm)) for arm in arms
        ]
        monkeypatch.setattr(run, "sides_of", lambda _study: sides)
        settings = {"suites": ("prose",), "prompts": 2, "repeats": 2, "warmup": 0, **settings}
        return run.run_study(Study(server=(ServerSpec("x", "http://x"),), work=tmp_path, **settings))

    return measure


@pytest.mark.parametrize("slow", PHASES)
def test_a_slow_phase_of_one_side_is_shown_there_and_nowhere_else(study_of, slow):
    log: list[str] = []
    record = study_of([Made("fast", log), Made("slow", log, slow)])
    phases = {row.build: row.phases for row in suite_rows(record)}
    assert phases["slow"] == {phase: 9.0 if phase == slow else 1.0 for phase in PHASES}
    assert set(phases["fast"].values()) == {1.0}
    said = terminal(record)
    assert said[said.index("Time of a round by phase") :].count("9.00") == 1
    assert f'data-series="{slow}" data-x="slow" data-y="9.0"' in page(record)


def test_sides_take_turns_in_going_first(study_of):
    log: list[str] = []
    study_of([Made("a", log), Made("b", log)])
    asked = [line for line in log if not line.startswith(("open", "close"))]
    assert asked == [
        "a lighthouse 1", "b lighthouse 1", "b market 1", "a market 1",
        "b lighthouse 1", "a lighthouse 1", "a market 1", "b market 1",
    ]  # fmt: skip


def test_one_server_at_a_time_takes_turns_by_pass(study_of):
    log: list[str] = []
    study_of([Made("a", log), Made("b", log)], interleave="server", prompts=1, temperatures=(0.7,))
    assert log == [
        "open a", "a lighthouse 1", "close a", "open b", "b lighthouse 1", "close b",
        "open b", "b lighthouse 2", "close b", "open a", "a lighthouse 2", "close a",
    ]  # fmt: skip


def test_warm_up_is_asked_and_not_counted(study_of):
    log: list[str] = []
    record = study_of([Made("a", log)], warmup=3, prompts=1, repeats=1)
    assert log.count("a lighthouse 1") == 4
    assert all(len(series.values) == 1 for series in record.series)


def test_a_greedy_text_that_changes_from_repeat_to_repeat_is_said(study_of):
    log: list[str] = []
    arm = Made("a", log)
    ask = arm.ask

    def fickle(request: Request) -> Reply:
        arm.text = f"answer {len(log)}"
        return ask(request)

    arm.ask = fickle
    record = study_of([arm], prompts=1)
    assert "unstable: a, prose/lighthouse, chat, temperature 0: 1 of 1 repeats differ from the first" in record.notes


def test_repeats_that_scatter_are_a_disturbance(study_of):
    log: list[str] = []
    arm = Made("a", log)
    ask = arm.ask

    def jumpy(request: Request) -> Reply:
        reply = ask(request)
        object.__setattr__(reply, "decode_ms", 100.0 * (1 + len(log) % 3))
        return reply

    arm.ask = jumpy
    record = study_of([arm], prompts=2, repeats=4)
    assert any("a: repeats of the same greedy request scatter" in said for said in record.conditions["disturbances"])


def test_nothing_measured_is_an_error_and_not_an_empty_record(study_of):
    arm = Made("a", [])

    def refuse(_request: Request) -> Reply:
        raise PromptRefusedError("too long")

    arm.ask = refuse
    with pytest.raises(UserError, match="no prompt was answered by every side"):
        study_of([arm])


def test_raw_alone_needs_prompts_that_can_be_asked_raw(study_of):
    with pytest.raises(UserError, match="no prompt of the suites can be asked raw"):
        study_of([Made("a", [])], suites=("tools",), templates=("raw",))


def test_a_model_that_is_not_there_is_named_before_anything_is_fetched(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.gguf: is no file"):
        run.run_study(Study(tmp_path / "nowhere.gguf", work=tmp_path))


def test_two_suites_of_one_name_are_refused(study_of, tmp_path):
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "mine.json")
        files[-1].write_text('[{"prompt": "x"}]')
    with pytest.raises(UserError, match="another suite of the name mine"):
        study_of([Made("a", [])], suites=tuple(map(str, files)))


def test_rotation_keeps_everyone():
    assert rotated(["a", "b", "c"], 4) == ["b", "c", "a"]


def test_an_interruption_while_texts_are_compared_loses_nothing(study_of, monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "compare_answers", interrupt)
    record = study_of([Made("plain", []), Made("drafted", [])])
    assert list(record.select("tokens", "drafted"))
    assert "broken off: interrupted before all texts were compared" in record.notes


def test_a_drafter_that_never_drafts_is_said(study_of):
    class Idle(Made):
        def ask(self, request: Request) -> Reply:
            return replace(super().ask(request), drafted=0, accepted=0, rounds=0, accepted_per_pos=None, spec=None)

    record = study_of([Made("plain", []), Idle("idle", [])])
    assert "idle: nothing was drafted in any answer" in record.notes
    assert not any("plain: nothing" in note for note in record.notes)
