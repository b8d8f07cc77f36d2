"""A draft that is cut short is the beginning of the draft of the whole trained block, not that of a shorter block."""

from __future__ import annotations

import pytest
from dflash_convert.cli import convert
from parity_cases import EXACT, TINY, Case
from probe_run import run_probe
from random_drafters import write_dflash
from random_dspark import write_dspark_speculators, write_specforge

SEED = 51
TAPS = [1, 3, 4]
TOKENS = 24
DEPTH = 3
DFLASH2 = {"conv_kernel_size": 2, "conv_group_size": 16, "selector_rank": 8, "selector_top_k": 8}
FORMS = {
    "DFlash": (write_dflash, {}),
    "DFlash2": (write_dflash, {"dflash_config": DFLASH2, "is_causal": False}),
    "DSpark": (write_specforge, {}),
    "DSpark with a bonus anchor": (write_dspark_speculators, {"sample_from_anchor": False}),
}


@pytest.mark.parametrize("form", FORMS)
def test_fewer_tokens_are_those_of_the_whole_block(form, probe, prompts, tiny_gguf, drafter, tmp_path):
    write, changes = FORMS[form]
    target = tiny_gguf("qwen3", "target")
    mask = drafter(Case("qwen3", "dflash")).mask_token
    checkpoint = write(tmp_path / "hf", TINY / "qwen3" / "target", SEED, TAPS, mask, **changes)
    gguf = tmp_path / "drafter.gguf"
    convert(checkpoint, target, gguf, "f32")
    texts = [prompts("qwen3", "hundred")[0], prompts("qwen3", "beyond-a-batch")[0]]

    def run(name, *options):
        models = ("-m", str(target), "-md", str(gguf), "--dflash")
        return run_probe(probe, tmp_path / name, texts, TOKENS, (*models, *options, *EXACT))

    whole, cut = run("whole"), run("cut", "--spec-draft-n-max", str(DEPTH))
    compared = 0
    for a, b in zip(whole, cut, strict=True):
        assert a.tokens == b.tokens
        of_block = {r.n: r for r in a.rounds}
        for r in b.rounds:
            if block := of_block.get(r.n):  # rounds after another number of accepted tokens start elsewhere
                assert r.draft == block.draft[:DEPTH], f"after {r.n} tokens, seed {SEED}"
                compared += 1
    assert compared >= 40
