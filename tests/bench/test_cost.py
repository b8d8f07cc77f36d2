"""The plan of `bench-dflash cost`, the order in which builds take turns, and one whole run on a tiny shape."""

from __future__ import annotations

import argparse
import dataclasses
import signal

import pytest
from bench_records import toy_cost
from dflash_tools.bench import cost
from dflash_tools.bench.cases import FULL, LENGTHS, Case, Choices, Probe, mean_tokens, plan, quick
from dflash_tools.bench.cost import Study, add_cost_arguments, run_cost
from dflash_tools.bench.cost_table import FLOOR
from dflash_tools.bench.record import Record, read, write
from dflash_tools.bench.report import terminal
from dflash_tools.bench.serving import Build, _add_request
from dflash_tools.client import Completion, Counted, SpecTimings, Timings
from dflash_tools.errors import UserError

CHOICES = Choices(depth=15)


# the plan


def test_the_plan_begins_with_what_matters_most():
    names = [case.name for case in plan(CHOICES)]
    assert names[:8] == [
        "plain", "steps", "acceptance 1", "acceptance 7", "acceptance full", "acceptance 4", "acceptance 11",
        "acceptance 2",
    ]  # fmt: skip
    assert len(names) == len(set(names)), "no case is measured twice"


def test_every_dimension_is_in_the_plan():
    cases = plan(CHOICES)
    assert {case.acceptance for case in cases} == {None, *LENGTHS}
    assert {case.slots for case in cases} == {1, 2, 4}
    assert {case.kv for case in cases} == {"f16", "q8_0"}
    assert {case.sampler for case in cases} == {"device", "host"}
    assert {probe.prompt for case in cases for probe in case.probes} == {32, 2048, 8192, 32768}
    assert {case.context for case in cases if case.rows} == {0, 8192, 32768}
    for case in cases:
        if case.acceptance is not None:
            plain = dataclasses.replace(case, acceptance=None)
            assert any(dataclasses.replace(c, probes=case.probes) == plain for c in cases), f"nothing to compare {case}"


def test_a_quick_plan_is_a_part_of_the_whole():
    short, whole = plan(quick(CHOICES)), plan(CHOICES)
    assert len(short) < len(whole) / 2
    assert {case.name for case in short} <= {case.name for case in whole}
    assert {"plain", "steps", "acceptance 1", "acceptance full"} <= {case.name for case in short}


def test_what_was_chosen_stays_in_a_quick_plan():
    short = quick(dataclasses.replace(CHOICES, lengths=("4",), rows=(1, 5)))
    assert short.lengths == ("4",) and short.rows == (1, 5) and short.samples < CHOICES.samples


def test_a_case_has_room_for_its_longest_request_and_the_block_after_it():
    case = Case("7", (Probe(32, 300, 1), Probe(8192, 337, 1)))
    assert case.cells(15) >= 8192 + 337 + 16 and case.cells(15) % 256 == 0


def test_tokens_of_a_round():
    assert [mean_tokens(length, 15) for length in (None, "1", "7", FULL)] == [1.0, 1.0, 7.0, 16.0]
    assert mean_tokens("11", 7) == 8.0, "no more than the block gives"


# turns


class Told(Study):
    """A study that writes down what it would run; a second passes for every case."""

    def __init__(self, monkeypatch, **kwargs):
        super().__init__([Build("fork", None, ()), Build("upstream", None, ())], None, Record("cost"), 15, **kwargs)
        self.told: list[tuple[str, str]] = []
        self.now = 1000.0
        monkeypatch.setattr(cost.time, "time", lambda: self.now)
        monkeypatch.setattr(cost, "run_case", self._run)
        monkeypatch.setattr(self, "_steps", lambda build, case: self._run(build, case))

    def _run(self, build, case, *_):
        self.told.append((build.name, case.name))
        self.now += 1.0
        if (build.name, case.name) == ("upstream", "acceptance 4"):
            raise UserError("it died\nat length")


CASES = [Case(), Case("1"), Case("7")]


def test_builds_alternate_within_each_case_and_change_places_each_turn(monkeypatch):
    study = Told(monkeypatch)
    study.run(CASES, 2, None)
    first = [(build, name) for name in ("plain", "acceptance 1", "acceptance 7") for build in ("fork", "upstream")]
    second = [(build, name) for name in ("plain", "acceptance 1", "acceptance 7") for build in ("upstream", "fork")]
    assert study.told == first + second
    assert not study.notes()


def test_what_no_time_is_left_for_is_not_begun_and_is_said(monkeypatch):
    study = Told(monkeypatch)
    study.run([*CASES, Case(FULL)], 3, 1000.0 + 6.5)
    assert [name for _, name in study.told] == [name for case in CASES for name in [case.name] * 2]
    assert study.now <= 1006.5
    assert study.notes() == ["no time was left for: acceptance full"]


def test_left_over_time_goes_to_more_turns(monkeypatch):
    study = Told(monkeypatch)
    study.run(CASES, 9, 1000.0 + 11)
    assert study.now <= 1011 and len(study.told) == 10, "one whole turn and the two first cases of the next"


def test_what_was_measured_before_an_interruption_is_kept_and_said(monkeypatch):
    class Interrupted(Told):
        def _run(self, build, case, *rest):
            if len(self.told) == 3:
                raise KeyboardInterrupt
            super()._run(build, case, *rest)

    study = Interrupted(monkeypatch)
    study.run(CASES, 2, None)
    assert len(study.told) == 3 and study.notes() == ["broken off: interrupted"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            monkeypatch.setattr(cost, "run_case", lambda *_: signal.raise_signal(signal.SIGINT))
            Study([Build("fork", None, ())], None, Record("cost"), 15).run(CASES, 1, None)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_build_that_fails_is_said_and_not_asked_again(monkeypatch):
    study = Told(monkeypatch)
    study.run([Case(), Case("4"), Case("7")], 2, None)
    assert study.told.count(("upstream", "acceptance 4")) == 1
    assert study.told.count(("fork", "acceptance 4")) == 2 and study.told.count(("upstream", "acceptance 7")) == 2
    assert study.notes() == ["upstream, acceptance 4: not measured: it died"]


# what an answer adds


def answer(spec: SpecTimings | None) -> Counted:
    timings = Timings(
        prompt_n=2048, prompt_ms=1024.0, predicted_n=71, predicted_ms=350.0, draft_n_accepted=60, spec=spec
    )
    return Counted(Completion("", (), "limit", False, timings), 10)


def test_rates_and_phases_are_per_request(monkeypatch):
    record, case = Record("cost"), Case("7", (Probe(2048, 71, 1),))
    spec = SpecTimings(10, 50.0, 20.0, 230.0, 10.0, 5.0, 35.0, 350.0)
    _add_request(record, Build("fork", None, ()), case, case.probes[0], answer(spec))
    found = {(s.name, s.labels.get("phase")): s.values for s in record.series}
    assert found == {
        ("prefill_rate", None): (2000.0,),
        ("decode_rate", None): (200.0,),
        ("round_ms", None): (35.0,),
        ("tokens_per_round", None): (7.0,),
        ("phase_ms", "draft"): (5.0,),
        ("phase_ms", "inject"): (2.0,),
        ("phase_ms", "verify"): (23.0,),
        ("phase_ms", "sample"): (1.0,),
        ("phase_ms", "commit"): (0.5,),
        ("phase_ms", "other"): (3.5,),
    }


def test_phases_that_a_build_does_not_report_are_unknown_and_not_zero():
    record, case = Record("cost"), Case("7", (Probe(2048, 71, 1),))
    _add_request(record, Build("upstream", None, ()), case, case.probes[0], answer(None))
    assert not list(record.select("phase_ms"))
    assert "phases of a round of upstream are unknown" in terminal(record)


def test_an_answer_that_ended_early_is_said():
    record, case = Record("cost"), Case("7", (Probe(32, 100, 1),))
    _add_request(record, Build("fork", None, ()), case, case.probes[0], answer(None))
    assert record.notes == ["fork, acceptance 7: 71 tokens came of 100 asked for"]


def test_medians_ratios_and_shares_are_in_the_table():
    record = Record("cost")
    labels = {"rows": 16, "context": 0, "kv": "f16", "slots": 1}
    for build, values in (("fork", [10, 12, 11]), ("upstream", [22]), (FLOOR, [5.5])):
        record.add("step_ms", build, "ms", values, **labels)
    record.add("step_ms", "fork", "ms", [7], **{**labels, "context": 8192})
    rows = [line.split() for line in terminal(record).splitlines()]
    assert ["rows", "16", "11.00", "22.00", "0.500", "5.50", "50%"] in rows
    assert ["rows", "16,", "context", "8192", "7.00", "-", "-", "-", "-"] in rows
    assert ["at", "fork", "upstream", "fork", "/", "upstream", "floor", "floor", "/", "fork"] in rows, (
        "a ratio says which way"
    )


def test_a_floor_without_a_measurement_is_no_table():
    record = Record("cost")
    record.add("step_ms", FLOOR, "ms", [5.5], rows=16)
    assert "Step of the target" not in terminal(record)


def test_conditions_and_disturbances_stand_before_the_first_number():
    record = toy_cost()
    record.conditions |= {"weights": "random", "temperature": 0, "disturbances": ["somebody compiled"]}
    before, _, _ = terminal(record).partition("\n\n")
    for said in ("DISTURBED: somebody compiled", "temperature: 0", "weights and acceptance are random", "KV f16"):
        assert said in before


# the whole


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_cost_arguments(parser)
    return parser.parse_args(words)


def test_a_whole_run_on_a_tiny_shape(bin_dir, tmp_path):
    words = ["--shape", "tiny-hybrid", "--bin", bin_dir, "--baseline", bin_dir, "--models", tmp_path / "models"]
    words += ["--quick", "--turns", "1", "--rounds", "4", "--samples", "1", "--lengths", "1,4", "--rows", "1,8"]
    words += ["--prefill", "256", "--threads", "1", "--logs", tmp_path / "logs"]
    record = run_cost(arguments(*map(str, words)))
    for build in ("fork", "upstream"):
        assert {s.labels["rows"] for s in record.select("step_ms", build)} == {"1", "8"}
        rates = {s.labels.get("acceptance", s.labels["drafter"]) for s in record.select("decode_rate", build)}
        assert rates == {"none", "1", "4"}
        assert {s.labels["drafter"] for s in record.select("prefill_rate", build)} == {"none", "dflash"}
        parts = {s.labels["part"] for s in record.select("memory", build, drafter="none")}
        assert {"target model (host)", "target kv (host)", "target states (host)", "target compute (host)"} <= parts
        one = next(record.select("tokens_per_round", build, acceptance="1"))
        assert one.values == (1.0,), "nothing is accepted at length 1"
    drawn = [next(record.select("tokens_per_round", b, acceptance="4")).values for b in ("fork", "upstream")]
    assert drawn[0] == drawn[1], "both builds see the same acceptance"
    assert list(record.select("copy_rate", "fork")) and list(record.select("step_ms", FLOOR, rows=8))
    assert all(value > 0 for s in record.series if s.name.endswith(("_ms", "_rate")) for value in s.values)
    assert record.conditions["shape"] == "tiny-hybrid" and record.conditions["drafter"]["depth"] == 7
    assert "Round, ms" in terminal(record)
    write(record, tmp_path / "record.json")
    assert read(tmp_path / "record.json").series == record.series


HELP = {
    "fork": "...\n-bs,   --backend-sampling, -nbs, --no-backend-sampling\n--dflash [FNAME]  speculative decoding\n",
    "upstream": "...\n-bs,   --backend-sampling\n--spec-type none,draft-eagle3,draft-dflash,ngram-mod\n",
}


@pytest.mark.parametrize(
    ("name", "switch", "host"),
    [
        ("fork", ("--dflash", "--spec-draft-n-max", "15"), ("--no-backend-sampling",)),
        ("upstream", ("--spec-type", "draft-dflash", "--spec-draft-n-max", "15"), ()),
    ],
)
def test_each_build_is_asked_in_its_own_words(tmp_path, name, switch, host):
    server = tmp_path / "llama-server"
    server.write_text(f"#!/bin/sh\ncat <<'END'\n{HELP[name]}END\n")
    server.chmod(0o755)
    assert Build.find(name, tmp_path, 15) == Build(name, tmp_path, switch, host)


def test_a_build_without_dflash_is_refused(tmp_path):
    server = tmp_path / "llama-server"
    server.write_text("#!/bin/sh\necho usage\n")
    server.chmod(0o755)
    with pytest.raises(UserError, match="names neither --dflash nor draft-dflash"):
        Build.find("old", tmp_path, 15)


def test_a_folder_that_is_no_build_is_said(tmp_path):
    with pytest.raises(UserError, match="llama-server: cannot be run"):
        run_cost(arguments("--shape", "tiny-hybrid", "--bin", str(tmp_path)))


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--lengths", "0.5"], "'0.5' is neither"), (["--samplers", "gpu"], "'gpu' is neither device nor host")],
)
def test_wrong_words_are_refused(words, message, bin_dir):
    with pytest.raises(UserError, match=message):
        run_cost(arguments("--shape", "tiny-hybrid", "--bin", str(bin_dir), *words))
