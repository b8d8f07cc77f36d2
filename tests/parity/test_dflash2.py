"""DFlash2 in both layouts: convolutions, selector, and the walk over the best tokens of each slot."""

from __future__ import annotations

import pytest
from parity_cases import TINY, Case
from random_drafters import write_dflash, write_speculators
from reference_dflash2 import DFlash2

SEED = 32
TAPS = [1, 3, 4]
FULL, SLIDING = "full_attention", "sliding_attention"
WINDOW = {"use_sliding_window": True, "sliding_window": 20}
SIZES = {"conv_kernel_size": 2, "conv_group_size": 16, "selector_rank": 8, "selector_top_k": 8}
SCALED = {"output_multiplier": 0.25, "final_logit_softcapping": 20.0}


@pytest.fixture
def check(drafts, drafter, tmp_path):
    def run(write, pair="qwen3", **changes):
        mask = drafter(Case(pair, "dflash")).mask_token
        checkpoint = write(tmp_path / "hf", TINY / pair / "target", SEED, TAPS, mask, **changes)
        gap = drafts(pair, checkpoint, "dflash", DFlash2.load(checkpoint))
        print(gap)
        gap.check()

    return run


@pytest.mark.family("DFlash2 (z-lab)", converts="yes", runs="yes", parity="≥ 40 blocks")
def test_published_form_all_sliding_not_causal_on_a_hybrid(check):
    check(write_dflash, "qwen35", dflash_config=SIZES, **WINDOW, layer_types=[SLIDING] * 2, is_causal=False)


@pytest.mark.family("DFlash2 (z-lab), scaled and capped logits", converts="yes", runs="yes", parity="≥ 40 blocks")
def test_scaled_and_capped_logits(check):
    check(write_dflash, dflash_config=SIZES | SCALED, is_causal=False)


@pytest.mark.family("DFlash2 (z-lab), sliding and full layers", converts="yes", runs="yes", parity="≥ 40 blocks")
def test_three_taps_wide_groups_and_mixed_layers(check):
    sizes = SIZES | {"conv_kernel_size": 3, "conv_group_size": 64, "selector_top_k": 15}
    check(write_dflash, dflash_config=sizes, **WINDOW, layer_types=[SLIDING, FULL])


@pytest.mark.family("DFlash2 (speculators)", converts="yes", runs="yes", parity="≥ 40 blocks")
@pytest.mark.parametrize("non_causal", [True, False])
def test_speculators(check, non_causal):
    check(write_speculators, **SIZES, **WINDOW, layer_types=[SLIDING, FULL], sliding_window_non_causal=non_causal)
