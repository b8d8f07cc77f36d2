"""Forms of drafters that the trained pairs do not have: sliding windows, causal blocks, other shapes and vocabularies.

The comparison is that of test_draft_distributions. Every checkpoint goes through convert-dflash, with the target as
GGUF. Random drafts are hardly ever accepted, so this says nothing about rollback.
"""

from __future__ import annotations

import pytest
from parity_cases import TINY, Case
from random_drafters import write_dflash, write_eagle3
from reference_dflash import DFlash
from reference_eagle3 import Eagle3

SEED = 20

FULL, SLIDING = "full_attention", "sliding_attention"
WINDOW = {"use_sliding_window": True, "sliding_window": 20}
DFLASH = {
    "sliding and causal": ("qwen3", {**WINDOW, "is_causal": True, "layer_types": [SLIDING, FULL]}),
    "sliding, not causal": ("qwen3", {**WINDOW, "is_causal": False, "layer_types": [FULL, SLIDING]}),
    "five taps out of order, block of 16": ("qwen3", {"taps": [4, 0, 2, 1, 3], "block_size": 16}),
    "three layers, one key head": ("qwen35", {"num_hidden_layers": 3, "num_key_value_heads": 1}),
    "sliding and causal on a hybrid": ("qwen35", {**WINDOW, "is_causal": True, "layer_types": [SLIDING] * 2}),
}
EAGLE3 = {
    "own embeddings, normed residual": ("qwen3", {"own_embeddings": True, "norm_before_residual": True}),
    "full vocabulary": ("qwen3", {"full_vocabulary": True}),
    "ids of outputs": ("qwen3", {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 4]}}),
    "on a hybrid": ("qwen35", {}),
}


@pytest.fixture
def check(drafts):
    """Convert a checkpoint, let the fork draft with it after 100 and 600 tokens, and compare."""

    def run(pair, checkpoint, engine, model):
        gap = drafts(pair, checkpoint, engine, model)
        print(f"{pair} {engine}, seed {SEED}: {gap}")
        gap.check()

    return run


@pytest.mark.family("DFlash (z-lab)", runs="yes", parity="≥ 40 blocks")
@pytest.mark.parametrize("name", DFLASH)
def test_dflash(name, check, drafter, tmp_path):
    pair, changes = DFLASH[name]
    changes = {"taps": [1, 3, 4]} | changes
    mask = drafter(Case(pair, "dflash")).mask_token
    checkpoint = write_dflash(tmp_path / "hf", TINY / pair / "target", SEED, mask=mask, **changes)
    check(pair, checkpoint, "dflash", DFlash.load(checkpoint))


@pytest.mark.parametrize("name", EAGLE3)
def test_eagle3(name, check, tmp_path):
    pair, changes = EAGLE3[name]
    changes = {"own_embeddings": False, "full_vocabulary": False} | changes
    checkpoint = write_eagle3(tmp_path / "hf", TINY / pair / "target", SEED, **changes)
    check(pair, checkpoint, "eagle3", Eagle3.load(checkpoint))
