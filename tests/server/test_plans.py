"""With sampling on the device a request plans few buffers: not for each micro-batch of its prompt, none to start."""

from __future__ import annotations

from pathlib import Path

import pytest
from dflash_tools.server import LlamaServer
from dflash_tools.tiny import ATTENTION, HYBRID
from serving import COMMON, CONTEXT, EXACT, LAYOUTS, UBATCH, Request, preloadable

SHIM = Path(__file__).with_name("count_plans.cpp")
PROMPT = 14 * UBATCH


@pytest.fixture(scope="module")
def shim(bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preloadable(SHIM, bin_dir, tmp_path_factory.mktemp("plans"))


@pytest.mark.parametrize("pair", (ATTENTION, HYBRID), ids=lambda pair: pair.family)
def test_a_prompt_is_planned_once(pair, bin_dir, tiny_gguf, prompt, shim, tmp_path, monkeypatch):
    plans = tmp_path / "plans"
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    monkeypatch.setenv("PLANS_FILE", str(plans))
    server = LlamaServer(
        bin_dir,
        tiny_gguf(pair.family, "target"),
        tiny_gguf(pair.family, pair.engine),
        switch=pair.switch,
        # a checkpoint of a hybrid target writes its state by a graph of its own
        extra=(*COMMON, *EXACT, *LAYOUTS[1], "-bs", "--ctx-checkpoints", "0"),
        log=tmp_path / "server.log",
    )
    assert PROMPT < CONTEXT
    request = Request(prompt(pair, PROMPT, 0), {"n_predict": 1, "cache_prompt": False})
    with server:
        request.send(server)
        before = plans.stat().st_size
        assert before > 0, "no plan was counted"
        request.send(server)
        found = plans.stat().st_size - before
    # the first micro-batch, the others, and the last, which samples
    assert found <= 3, f"{found} plans in a prompt of {PROMPT // UBATCH} micro-batches"


def test_a_request_reserves_nothing(serving, prompt):
    server = serving.drafted(ATTENTION, (*LAYOUTS[1], "-bs", "-lv", "4"))
    params = {"n_predict": 12, "ignore_eos": True, "cache_prompt": False}
    reserved = []
    for temperature in (0.8, 0.0, 0.8):
        Request(prompt(ATTENTION, 40, 0), {**params, "temperature": temperature}).send(server)
        reserved.append(server.log.read_text(errors="replace").count("reserving ..."))
    assert reserved[0] > 0, "the log does not say what is reserved"
    assert reserved == reserved[:1] * 3
