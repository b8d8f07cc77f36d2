"""Where the server says that the time of a speculative round went."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dflash_tools.client import LlamaClient
from dflash_tools.server import LlamaServer
from dflash_tools.tiny import ATTENTION, TinyPair
from serving import COMMON, EXACT, LAYOUTS, preloadable

PHASES = ("draft", "verify", "inject", "sample", "commit", "other")
SHIM = Path(__file__).with_name("slow_phase.cpp")
SLOW_MS = 60_000


def ask(server: LlamaClient, ids: tuple[int, ...], n_predict: int = 40) -> dict[str, Any]:
    """`timings` of one greedy answer, as the server wrote them."""
    body = {"prompt": list(ids), "n_predict": n_predict, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
    return server._post("/completion", body)["timings"]


def spec_seconds(server: LlamaClient) -> dict[str, float]:
    found = server.metrics()
    return {name: found[f"spec_{name}_seconds_total"] for name in (*PHASES, "round")} | {
        "rounds": found["spec_rounds_total"]
    }


def test_the_phases_of_a_request_add_up_to_its_rounds(serving, prompt, pair: TinyPair):
    server = serving.drafted(pair)
    ids = prompt(pair, 40, 0)
    drafts = server.spec_counters()
    timings = ask(server, ids)
    drafts = server.spec_counters() - drafts
    spec = timings["spec"]
    phases = {name: spec[f"{name}_ms"] for name in PHASES}
    assert set(spec) == {"rounds", "round_ms", "accepted_per_pos"} | {f"{name}_ms" for name in PHASES}
    assert spec["rounds"] == drafts.verified > 0
    assert sum(phases.values()) == pytest.approx(spec["round_ms"], abs=0.01)
    assert all(ms >= 0.0 for ms in phases.values()), phases
    assert min(phases["draft"], phases["verify"], phases["inject"], phases["sample"]) > 0.0
    assert sum(spec["accepted_per_pos"]) == timings["draft_n_accepted"]
    assert spec["accepted_per_pos"] == sorted(spec["accepted_per_pos"], reverse=True)
    # Rounds follow each other without gaps from the first token on; predicted_ms ends before the last commit.
    assert spec["round_ms"] <= timings["predicted_ms"] + phases["commit"] + 0.01
    if spec["rounds"] == timings["predicted_n"] - 1 - timings["draft_n_accepted"]:
        assert spec["round_ms"] >= timings["predicted_ms"] - 0.01


def test_without_a_drafter_nothing_is_said(serving, prompt):
    assert "spec" not in ask(serving.plain(ATTENTION), prompt(ATTENTION, 40, 0))


def test_metrics_count_what_the_requests_report(serving, prompt):
    server = serving.drafted(ATTENTION)
    before = spec_seconds(server)
    answers = [ask(server, prompt(ATTENTION, 40, start))["spec"] for start in range(3)]
    grown = {name: value - before[name] for name, value in spec_seconds(server).items()}
    assert grown["rounds"] == sum(spec["rounds"] for spec in answers)
    # /metrics prints six digits; the rest of an iteration after its tokens are known is in the next round of a request.
    digits = 1e-5 * sum(before.values())
    for name in PHASES[:-1]:
        assert grown[name] == pytest.approx(sum(spec[f"{name}_ms"] for spec in answers) / 1e3, abs=digits + 1e-5), name
    assert grown["round"] == pytest.approx(sum(grown[name] for name in PHASES), abs=digits + 1e-5)


def test_slots_that_share_rounds_are_counted_once_in_the_metrics(serving, prompt):
    server = serving.drafted(ATTENTION, LAYOUTS[4])
    before, start = spec_seconds(server), time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda at: ask(server, prompt(ATTENTION, 40, at), 100), range(4)))
    wall = time.monotonic() - start
    grown = {name: value - before[name] for name, value in spec_seconds(server).items()}
    rounds = [timings["spec"]["rounds"] for timings in answers]
    assert max(rounds) <= grown["rounds"] <= sum(rounds)
    assert grown["round"] <= wall
    for timings in answers:
        assert timings["spec"]["round_ms"] <= timings["predicted_ms"] + timings["spec"]["commit_ms"] + 0.01


@pytest.fixture(scope="module")
def slowed(bin_dir, tiny_gguf, tmp_path_factory):
    """A server, and the file that makes one of its phases slow."""
    folder = tmp_path_factory.mktemp("slow-phase")
    library, phase = preloadable(SHIM, bin_dir, folder), folder / "phase"
    phase.write_text("none 0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        patch.setenv("SLOW_PHASE_FILE", str(phase))
        server = LlamaServer(
            bin_dir,
            tiny_gguf(ATTENTION.family, "target"),
            tiny_gguf(ATTENTION.family, ATTENTION.engine),
            switch=ATTENTION.switch,
            extra=(*COMMON, *EXACT, *LAYOUTS[1]),
            log=folder / "server.log",
        )
        with server:
            yield server, phase


@pytest.mark.parametrize("slow", PHASES)
def test_a_slow_phase_shows_up_in_its_place(slowed, prompt, serving, slow):
    server, phase = slowed
    ids = prompt(ATTENTION, 40, 0)
    phase.write_text(f"{slow} {SLOW_MS}")
    try:
        spec = ask(server, ids, 24)["spec"]
    finally:
        phase.write_text("none 0")
    ms = {name: spec[f"{name}_ms"] for name in PHASES}
    # What the host does after a round belongs to the next one; after the last one nobody waits for it.
    planted = SLOW_MS * (spec["rounds"] - (slow == "other"))
    assert spec["rounds"] >= 2
    assert ms[slow] >= planted, ms
    assert all(value < SLOW_MS for name, value in ms.items() if name != slow), ms
