"""The plan of `bench-dflash cost`, the order in which builds take turns, and one whole run on a tiny shape."""

from __future__ import annotations

import argparse
import dataclasses
import io
import signal

import pytest
from bench_records import toy_cost
from dflash_tools.bench import cost
from dflash_tools.bench.bandwidth import copy_rates
from dflash_tools.bench.cases import FULL, LENGTHS, Case, Choices, Probe, mean_tokens, plan, quick
from dflash_tools.bench.cli import main
from dflash_tools.bench.cost import Study, add_cost_arguments, run_cost
from dflash_tools.bench.cost_table import FLOOR
from dflash_tools.bench.progress import Progress
from dflash_tools.bench.record import PHASES, Record, read, write
from dflash_tools.bench.report import terminal
from dflash_tools.bench.serving import Build, _add_request, add_shared
from dflash_tools.bench.stats import median
from dflash_tools.client import Completion, Counted, SpecTimings, Timings
from dflash_tools.errors import UserError

CHOICES = Choices(depth=15)


@pytest.fixture
def small_copies(monkeypatch):
    """A bandwidth that means nothing, in no time."""
    monkeypatch.setattr(cost, "copy_rates", lambda folder: copy_rates(folder, 1))


# the plan


def test_the_plan_begins_with_what_matters_most():
    names = [case.name for case in plan(CHOICES)]
    assert names[:8] == [
        "plain", "acceptance 7", "steps", "acceptance 1", "acceptance full", "acceptance 4", "acceptance 11",
        "acceptance 2",
    ]  # fmt: skip
    prompts = [{probe.prompt for probe in case.probes} for case in plan(CHOICES)[:2]]
    assert prompts == [{32, 2048, 8192}] * 2, "prefill with and without drafter comes first"
    assert [case.visits for case in plan(CHOICES)[:3]] == [2, 2, 1]
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


def test_what_takes_minutes_comes_last():
    cases = plan(dataclasses.replace(CHOICES, contexts=(8192, 131072)))
    deep = [i for i, case in enumerate(cases) if any(probe.prompt > 100_000 for probe in case.probes)]
    others = [i for i, case in enumerate(cases) if i not in deep and not case.context]
    assert len(deep) == 2 and min(deep) > max(others)


def test_without_prompts_and_rows_there_is_still_a_plan():
    cases = plan(dataclasses.replace(CHOICES, prefill=(), rows=(), contexts=()))
    assert not any(case.rows for case in cases) and all(case.probes for case in cases)


def test_a_plan_sampled_on_the_host_has_nothing_else():
    cases = plan(dataclasses.replace(CHOICES, samplers=("host",)))
    assert {case.sampler for case in cases} == {"host"} and len({c.name for c in cases}) == len(cases)


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


def test_cases_are_chosen_by_name():
    chosen = cost._cases("slots|context 32768", dataclasses.replace(CHOICES, rows=()))
    assert [case.name for case in chosen] == [
        "plain, 4 slots", "acceptance 7, 4 slots", "plain, 2 slots", "acceptance 7, 2 slots",
        "plain, context 32768", "acceptance 7, context 32768",
    ]  # fmt: skip


def test_tokens_of_a_round():
    assert [mean_tokens(length, 15) for length in (None, "1", "7", FULL)] == [1.0, 1.0, 7.0, 16.0]
    assert mean_tokens("11", 7) == 8.0, "no more than the block gives"


# turns


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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


def test_the_first_cases_are_visited_more_often_another_build_first_each_time(monkeypatch):
    study = Told(monkeypatch)
    study.run([Case(visits=3), Case("1")], 1, None)
    assert [build for build, name in study.told if name == "plain"] == [
        "fork", "upstream", "upstream", "fork", "fork", "upstream",
    ]  # fmt: skip
    assert len(study.told) == 8


@pytest.mark.parametrize(("turns", "deadline", "starts"), [(2, None, 14), (1, 1006.9, 6)])
def test_the_progress_is_of_the_starts_of_programs_that_there_is_time_for(monkeypatch, turns, deadline, starts):
    out = Terminal()
    study = Told(monkeypatch, bar=lambda total: Progress(total, out))
    study.run([Case(visits=2), Case("1"), Case("7")], turns, deadline)
    assert (len(study.told), study.progress.done, study.progress.total) == (starts, starts, starts)
    assert "[###" in out.getvalue() and f" {starts}/" in out.getvalue()
    assert "bench-dflash: turn 1: plain: 2 s\n" in out.getvalue()


def test_samples_that_fell_during_one_visit_are_said(monkeypatch):
    class Warming(Told):
        def _run(self, build, case, *rest):
            super()._run(build, case, *rest)
            fall = [11.0, 10.9, 10.7] if build.name == "upstream" else [10.0]
            self.record.add("round_ms", build.name, "ms", fall, drafter="dflash", acceptance=case.acceptance)

    study = Warming(monkeypatch)
    study.run([Case("7", visits=2), Case("1")], 1, None)
    assert study.visits.disturbances() == [
        "samples of one visit run in one direction: rounds: acceptance 1 (upstream 11 to 10.7)"
    ]


def test_a_longer_prompt_is_expected_to_take_longer(monkeypatch):
    study = Told(monkeypatch)
    study.seconds[Case("7", (Probe(8000, 1, 1),))] = 2 * (5.0 + 8.0)  # two builds, 5 s to start, 1000 tokens a second
    study.record.add("prefill_rate", "fork", "tok/s", [1000.0], drafter="dflash", tokens=8000)
    study.record.add("round_ms", "fork", "ms", [100.0], drafter="dflash", acceptance="7")
    decode = Case("7", (Probe(32, 70, 1),), slots=2)
    assert study._expected(decode) == pytest.approx(1.1 * 2 * (5.0 + 0.032 + 1.0), rel=0.01)
    longer = Case("7", (Probe(32000, 1, 1),))
    assert study._expected(longer) == pytest.approx(1.1 * 2 * (5.0 + 32 * 4**0.35 + 0.014), rel=0.01)


def test_what_no_time_is_left_for_is_not_begun_and_is_said(monkeypatch):
    study = Told(monkeypatch)
    study.run([*CASES, Case(FULL)], 3, 1000.0 + 6.9)
    assert [name for _, name in study.told] == [name for case in CASES for name in [case.name] * 2]
    assert study.now <= 1006.9
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

    out = Terminal()
    study = Interrupted(monkeypatch, bar=lambda total: Progress(total, out))
    study.run(CASES, 2, None)
    assert out.getvalue().endswith("left\x1b[K\n"), "what is said next does not begin behind the bar"
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
    assert study.notes() == ["failed: upstream, acceptance 4: not measured: it died"]


def test_a_build_that_can_do_nothing_is_given_up(monkeypatch):
    class Dead(Told):
        def _run(self, build, case, *rest):
            self.told.append((build.name, case.name))
            if build.name == "upstream":
                raise UserError("it does not start")
            self.record.add("decode_rate", build.name, "tok/s", [1.0])

    study = Dead(monkeypatch)
    study.run([Case(length) for length in ("1", "2", "4", "7", FULL)], 1, None)
    assert [build for build, _ in study.told].count("upstream") == 3 and len(study.told) == 8
    assert study.notes()[-1] == "failed: upstream: nothing else was asked of it"


DYING = """#!/bin/sh
case "$*" in
    *--help*) echo; echo '--spec-type none,draft-dflash';;
    *--version*) echo 'version: 1 (dying)';;
    *) echo 'no kernel image is available' >&2; exit 3;;
esac
"""


def test_a_baseline_that_does_not_start_is_said_and_what_was_measured_kept(bin_dir, tmp_path, small_copies, capsys):
    for name in ("llama-server", "llama-bench"):
        (tmp_path / name).write_text(DYING)
        (tmp_path / name).chmod(0o755)
    words = ["cost", "--shape", "tiny-hybrid", "--bin", bin_dir, "--baseline", tmp_path, "--models", tmp_path / "m"]
    words += ["--turns", "1", "--rounds", "2", "--samples", "1", "--threads", "1", "--out", tmp_path / "out", "--quick"]
    assert main([*map(str, words), "--lengths", "4", "--rows", "1", "--prefill", "128"]) == 1
    assert "failed: upstream, plain: not measured: llama-server ended with status 3" in capsys.readouterr().err
    kept = read(tmp_path / "out.json")
    assert {s.build for s in kept.select("round_ms")} == {"fork", FLOOR}


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


def slot_answer(tokens: int, accepted: int, ms: float) -> Completion:
    return Completion("", (), "limit", False, Timings(predicted_n=tokens, predicted_ms=ms, draft_n_accepted=accepted))


def test_a_round_of_several_slots_is_that_of_one_and_its_phases_are_those_of_the_loop():
    record, case = Record("cost"), Case("7", (Probe(32, 71, 1),), slots=2)
    grown = {"spec_rounds_total": 10.0, "spec_decode_num_drafts_total": 20.0, "spec_round_seconds_total": 0.3}
    grown |= {f"spec_{phase}_seconds_total": 0.01 * i for i, phase in enumerate(PHASES)}
    answers = [slot_answer(71, 60, 300.0), slot_answer(71, 60, 310.0)]  # 10 steps each
    add_shared(record, Build("fork", None, ()), case, case.probes[0], answers, grown)
    found = {(s.name, s.labels.get("phase")): s.values for s in record.series}
    assert found == {
        ("round_ms", None): (30.5,),
        ("tokens_per_round", None): (7.0,),
        ("drafts_per_round", None): (2.0,),
        **{("phase_ms", phase): (pytest.approx(1.0 * i),) for i, phase in enumerate(PHASES)},
    }
    assert all(s.labels["slots"] == "2" for s in record.series)
    assert "2 slots: a round is that of one slot" in terminal(record)


def test_a_server_that_counts_no_rounds_still_has_the_round_of_several_slots():
    record, case = Record("cost"), Case("7", (Probe(32, 71, 1),), slots=2)
    add_shared(record, Build("upstream", None, ()), case, case.probes[0], [slot_answer(71, 60, 300.0)] * 2, {"x": 1.0})
    assert {s.name: s.values for s in record.series} == {"round_ms": (30.0,), "tokens_per_round": (7.0,)}


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


def test_a_share_of_a_rate_is_how_near_it_is_to_its_limit():
    record = Record("cost")
    for build, value in (("fork", 100.0), (FLOOR, 400.0)):
        record.add("decode_rate", build, "tok/s", [value], drafter="none", slots=1)
    assert ["plain", "100.0", "400.0", "25%"] in [line.split() for line in terminal(record).splitlines()]


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


def test_a_whole_run_on_a_tiny_shape(bin_dir, tmp_path, small_copies):
    words = ["--shape", "tiny-hybrid", "--bin", bin_dir, "--baseline", bin_dir, "--models", tmp_path / "models"]
    words += ["--quick", "--turns", "1", "--rounds", "4", "--samples", "1", "--lengths", "1,4", "--rows", "1,8"]
    words += ["--prefill", "256", "--threads", "1", "--logs", tmp_path / "logs", "--slots", "1,2"]
    record = run_cost(arguments(*map(str, words)))
    for build in ("fork", "upstream"):
        assert {s.labels["rows"] for s in record.select("step_ms", build)} == {"1", "8"}
        rates = {s.labels.get("acceptance", s.labels["drafter"]) for s in record.select("decode_rate", build)}
        assert rates == {"none", "1", "4"}
        assert {s.labels["drafter"] for s in record.select("prefill_rate", build)} == {"none", "dflash"}
        parts = {s.labels["part"] for s in record.select("memory", build, drafter="none")}
        assert {"target model (host)", "target kv (host)", "target states (host)", "target compute (host)"} <= parts
        parts = {s.labels["part"] for s in record.select("memory", build, drafter="dflash")}
        assert {"drafter model (host)", "drafter kv (host)"} <= parts, "whatever acceptances were asked for"
        one = next(record.select("tokens_per_round", build, acceptance="1"))
        assert one.values == (1.0,), "nothing is accepted at length 1"
    drawn = [next(record.select("tokens_per_round", b, acceptance="4")).values for b in ("fork", "upstream")]
    assert drawn[0] == drawn[1], "both builds see the same acceptance"
    assert list(record.select("copy_rate", "fork")) and list(record.select("step_ms", FLOOR, rows=8))
    for build in ("fork", "upstream"):  # here the baseline is the fork too, so both tell their phases
        assert {s.labels["phase"] for s in record.select("phase_ms", build, slots=2)} == set(PHASES)
        assert median(next(record.select("tokens_per_round", build, slots=2)).values) == pytest.approx(1.0)
        assert {s.labels["slots"] for s in record.select("decode_rate", build, drafter="none")} == {"1", "2"}
    for series in [s for s in record.series if s.build == "fork" and s.name in ("decode_rate", "prefill_rate")]:
        assert list(record.select(series.name, FLOOR, **series.labels)), "every rate has its limit"
    # whole microseconds: sampling a row of the tiny vocabulary takes none
    least = {"phase_ms": 0.0}
    for series in [s for s in record.series if s.name.endswith(("_ms", "_rate"))]:
        assert all(value >= least.get(series.name, 1e-9) for value in series.values), series
    assert {len(s.values) for s in record.select("step_ms", "fork")} == {9}, "without the runs that warm up"
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
    [
        (["--lengths", "0.5"], "'0.5' is neither"),
        (["--samplers", "gpu"], "'gpu' is neither device nor host"),
        (["--cases", "9 slots"], "'9 slots' is in none of the names: plain; acceptance 7;"),
        (["--cases", "("], "is no regular expression"),
    ],
)
def test_wrong_words_are_refused(words, message, bin_dir):
    with pytest.raises(UserError, match=message):
        run_cost(arguments("--shape", "tiny-hybrid", "--bin", str(bin_dir), *words))
