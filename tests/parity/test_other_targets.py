"""Targets of architectures that the fork taps and upstream does not: features and drafts against transformers.

Random weights behind the tokenizer of the tiny target. The taps of all architectures are compared with the graph's own
layer outputs in the fork's tests/test-layer-inp.cpp; here two of them meet another implementation.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from dflash_convert.cli import convert
from dflash_convert.upstream import convert_target
from dflash_tools.tiny import cached_gguf
from draft_gap import compare
from parity_cases import EXACT, TINY
from probe_run import run_probe
from random_drafters import write_dflash
from reference_dflash import DFlash
from reference_target import Target
from transformers import AutoConfig, AutoModelForCausalLM

SEED = 47
TAPS = [0, 1, 2]
MASK = 7
DRAFTED_TOKENS = 44
# Of the largest feature. Measured 2.3e-6 (qwen2), 2.5e-6 (deepseek_v3, whose latent attention llama.cpp multiplies in
# another order); a wrong layer differs by 0.5.
TOLERANCE = 2e-5

SIZES = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 1018,
}
# Kimi-K2.x in small: latent attention, one dense layer, then experts chosen by sigmoids
LATENT_ATTENTION_AND_EXPERTS = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
}
TARGETS: dict[str, dict[str, Any]] = {"qwen2": {}, "deepseek_v3": LATENT_ATTENTION_AND_EXPERTS}


def write_target(kind: str, folder: Path) -> Path:
    """A checkpoint of the architecture, with weights wide enough that the layers change what they are given."""
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SIZES | TARGETS[kind])), dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, 1.5 * weight.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / "qwen3" / "target" / name, folder)
    return folder


@pytest.mark.parametrize("kind", TARGETS)
def test_features_and_drafts_equal_the_references(kind, probe, prompts, tiny_gguf, tmp_path):
    checkpoint = write_target(kind, tmp_path / "target")
    cache = tiny_gguf("qwen3", "target").parents[1]
    gguf = cached_gguf([checkpoint], cache, f"{kind}-f32.gguf", lambda path: convert_target(checkpoint, path, "f32"))
    drafter = write_dflash(tmp_path / "hf", checkpoint, SEED, TAPS, MASK)
    convert(drafter, gguf, tmp_path / "drafter.gguf", "f32")
    options = ("-m", str(gguf), "-md", str(tmp_path / "drafter.gguf"), "--dflash", *EXACT)
    (job,) = run_probe(probe, tmp_path / "probe", [prompts("qwen3", "hundred")[0]], DRAFTED_TOKENS, options)
    target = Target(checkpoint)
    run = target.run(job.tokens)

    def gap_to(taps: list[int]) -> float:
        wanted = run.features(taps)[: len(job.features)]
        return (job.features - wanted).abs().max().item() / wanted.abs().max().item()

    assert job.taps == [tap + 1 for tap in TAPS]
    drafts = compare([(job, run)], DFlash.load(drafter), target)
    print(f"{kind}: features differ by {gap_to(TAPS):.2g} of the largest, shifted by {gap_to([1, 2, 3]):.2g}; {drafts}")
    assert gap_to(TAPS) <= TOLERANCE
    assert gap_to([1, 2, 3]) > 0.1, "a tap one layer off would not be noticed"
    assert drafts.blocks >= 40
    drafts.check()
