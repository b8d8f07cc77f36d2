"""Rates, acceptance and speed-up are what docs/measuring.md defines, and what is unknown stays unknown."""

from __future__ import annotations

import pytest
from bench_records import GREEDY, RAW, SAMPLED, add_prompt, run_record, toy_run
from dflash_tools.bench.report import markdown, terminal
from dflash_tools.bench.summary import luce_rows, prompt_rows, suite_rows


def rows_of(record) -> dict[tuple[str, str], object]:
    return {(row.build, row.suite): row for row in suite_rows(record)}


def test_quantities_of_a_suite_by_hand():
    rows = rows_of(toy_run())
    plain, drafted = rows["plain", "code"], rows["drafted", "code"]
    assert (plain.rate, plain.al, plain.tokens) == (100.0, 1.0, 300)
    assert drafted.rate == pytest.approx(150 / 0.75)
    assert drafted.al == pytest.approx(150 / 50), "tokens over steps of all prompts, not a mean of means"
    assert drafted.rounds_per_second == pytest.approx(50 / 0.75)
    assert drafted.speedup.value == pytest.approx(2.0)
    # Two passes: 100 rounds in all, 75 + 25 drafts accepted.
    assert drafted.accepted_at == pytest.approx((0.75, 0.25))


def test_all_suites_together_count_each_for_as_long_as_it_lasts():
    row = rows_of(toy_run())["drafted", "all"]
    assert row.rate == pytest.approx(170 / 1.15)
    assert row.speedup.value == pytest.approx(1.7 / 1.15)


def test_a_slow_phase_shows_up_in_its_place():
    record = toy_run()
    rows = rows_of(record)
    assert rows["drafted", "chat"].phases == pytest.approx(
        {"draft": 1, "inject": 1, "verify": 9, "sample": 1, "commit": 1, "other": 1}
    )
    assert rows["drafted", "code"].phases["verify"] == 1.0
    # Every round counts once: 100 of code, 40 of chat.
    assert rows["drafted", "all"].phases["verify"] == pytest.approx((100 * 1 + 40 * 9) / 140)
    header, line = _phase_lines(terminal(record))
    assert dict(zip(header, line, strict=True))["verify"] == "9.00"


def _phase_lines(said: str) -> tuple[list[str], list[str]]:
    block = said[said.index("Time of a round by phase") :].splitlines()
    header = block[1].split()[3:]
    line = next(text for text in block if " chat " in text and "drafted" in text).split()
    return header, line[-len(header) :]


def test_without_timers_phases_are_unknown_and_never_zero():
    record = run_record()
    add_prompt(record, "plain", "a", [101], [1000.0], steps=[100])
    add_prompt(record, "drafted", "a", [101], [500.0], steps=[25], accepted_at=[20])
    assert rows_of(record)["drafted", "code"].phases is None
    assert "phases of a round of drafted are unknown" in terminal(record)


def test_an_engine_that_tells_nothing_has_dashes_and_is_timed_by_the_client():
    record = run_record(baselines={})
    labels = {"suite": "code", "prompt": "a", "temperature": "0", "thinking": "default", "template": "chat"}
    add_prompt(record, "other", "a", [101], [2000.0], clock="stream_ms")
    record.add("ttft_ms", "mute", "ms", [5.0], **labels)
    rows = rows_of(record)
    assert (rows["other", "code"].rate, rows["other", "code"].by_client) == (50.0, True)
    mute = rows["mute", "code"]
    assert (mute.rate, mute.al, mute.tokens, mute.accepted_at, mute.equal) == (None,) * 5
    assert "50.0*" in terminal(record)


def test_sides_with_other_clocks_are_compared_by_the_client():
    record = run_record(baselines={"other": "plain"})
    add_prompt(record, "plain", "a", [101], [1000.0])
    record.add("stream_ms", "plain", "ms", [1250.0], **record.series[0].labels)
    add_prompt(record, "other", "a", [101], [500.0], clock="stream_ms")
    assert rows_of(record)["other", "code"].speedup.value == pytest.approx(2.5)


def test_answers_of_one_token_have_no_rate_and_are_counted():
    record = run_record()
    add_prompt(record, "plain", "a", [101], [1000.0], steps=[100])
    record.add("tokens", "plain", "count", [1], **{**record.series[0].labels, "prompt": "b"})
    row = rows_of(record)["plain", "code"]
    assert (row.prompts, row.short, row.rate) == (2, 1, 100.0)
    assert "1 answers ended with their first token" in terminal(record)


def test_luces_table_is_a_mean_of_prompts():
    record = run_record()
    for prompt, plain_ms, ms, steps in (("x", 1000.0, 500.0, 51), ("y", 500.0, 100.0, 17)):
        add_prompt(record, "plain", prompt, [102], [plain_ms], setting=RAW, steps=[101])
        add_prompt(record, "drafted", prompt, [102], [ms], setting=RAW, steps=[steps])
    (row,) = luce_rows(record)
    assert (row.plain_rate, row.rate) == pytest.approx(((101 + 202) / 2, (202 + 1010) / 2))
    assert row.speedup == pytest.approx(606 / 151.5)
    assert row.al == pytest.approx((102 / 51 + 102 / 17) / 2)
    assert "As Luce's RESULTS count" in markdown(record)


def test_each_prompt_has_its_row():
    rows = {(row.build, prompt): row for prompt, row in prompt_rows(toy_run())}
    assert len(rows) == 6
    assert rows["drafted", "a"].al == 4.0
    assert rows["drafted", "b"].speedup.value == pytest.approx(2.0)


def test_a_disturbed_run_says_so_before_any_number():
    record = toy_run()
    record.conditions["disturbances"] = ["GPU 0: hardware thermal slowdown"]
    for said in (terminal(record), markdown(record)):
        assert said.index("hardware thermal slowdown") < said.index("By suite")


def test_a_speed_up_without_compared_texts_is_said():
    record = run_record()
    for setting in (GREEDY, SAMPLED):
        add_prompt(record, "plain", "a", [101], [1000.0], setting=setting)
        add_prompt(record, "drafted", "a", [101], [500.0], setting=setting)
    record.add("equal", "drafted", "0 / 1", [1], suite="code", prompt="a", **GREEDY)
    greedy, sampled = terminal(record).split("By suite: ")[1:3]
    assert "Speed without equality" not in greedy
    assert "Speed without equality: the texts of drafted were not checked here: sampled" in sampled


def test_the_type_of_kv_cells_stands_with_the_numbers():
    said = "KV: f16, as no option says otherwise"
    assert said in terminal(run_record(options="-c 4096"))
    assert said not in terminal(run_record(options="-c 4096 -ctk q8_0"))
    assert said not in terminal(run_record(target={}, options="-c 4096")), "of other engines it is unknown"
