"""Drafters from other engines' GGUF files draft, once upgraded, what the reference drafts from their checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dflash_convert.conversion import convert
from gguf import GGMLQuantizationType as T
from old_gguf import BUUN, LUCEBOX, MIGRATED, write_old
from parity_cases import TINY, Case
from random_drafters import write_dflash
from reference_dflash import DFlash
from reference_math import load_checkpoint

SEED = 47
TAPS = [1, 3, 4]


@pytest.fixture
def gap(drafts, drafter, tiny_gguf, tmp_path):
    """The gap of what the fork drafts with an upgraded file of the dialect to the checkpoint's reference."""

    def run(arch: str, names: dict[str, str], keys: dict, old_config: dict | None = None, **config):
        mask = drafter(Case("qwen3", "dflash")).mask_token
        folder = write_dflash(tmp_path / "hf", TINY / "qwen3" / "target", SEED, TAPS, mask, **config)
        stated, weights = load_checkpoint(folder)
        own = {"dflash.block_size": 8, "dflash.mask_token_id": mask, "dflash.target_layer_ids": TAPS, **keys}
        old = write_old(tmp_path / "old.gguf", arch, {**stated, **(old_config or {})}, weights, names=names, keys=own,
                        matrices=T.F32, dtype=torch.float32)  # fmt: skip

        def upgraded(path: Path) -> None:
            path.unlink()
            assert convert(old, tiny_gguf("qwen3", "target"), path)[1] == path

        found = drafts("qwen3", folder, "dflash", DFlash.load(folder), edit=upgraded)
        print(found)
        return found

    return run


@pytest.mark.family("GGUF dflash-draft (buun, BeeLlama)", converts="yes", runs="yes", parity="≥ 40 blocks")
def test_file_of_buun_and_beellama_with_windows(gap):
    window = {"use_sliding_window": True, "sliding_window": 20, "layer_types": ["sliding_attention"] * 2}
    keys = {"attention.causal": False, "attention.sliding_window": 20, "attention.sliding_window_pattern": [True] * 2}
    gap("dflash-draft", BUUN, keys, **window).check()


@pytest.mark.family("GGUF qwen35-dflash-draft (lucebox)", converts="yes", runs="yes", parity="≥ 40 blocks")
def test_file_of_lucebox_with_a_wrong_rope_base(gap):
    gap("qwen35-dflash-draft", LUCEBOX, {"dflash.n_target_layers": 3}, {"rope_theta": 1e6}).check()


@pytest.mark.family("GGUF gemma4-dflash-draft (lucebox)", runs="yes", parity="≥ 40 blocks")
def test_file_of_lucebox_for_gemma_with_a_window_and_a_soft_cap(gap):
    config = {"use_sliding_window": True, "sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"]}
    keys = {"dflash.sliding_window": 20, "dflash.logit_softcap": 5.0, "dflash.target_hidden": 256}
    gap("gemma4-dflash-draft", LUCEBOX, keys, final_logit_softcapping=5.0, **config).check()


@pytest.mark.family("GGUF dflash, ids left as outputs (BeeLlama's migration)", runs="yes", parity="≥ 40 blocks")
def test_file_whose_ids_a_migration_left_as_outputs(gap, drafter):
    window = {"use_sliding_window": True, "sliding_window": 20, "layer_types": ["sliding_attention"] * 2}
    keys = {"attention.causal": False, "attention.sliding_window": 20, "attention.sliding_window_pattern": [True] * 2,
            "target_layers": TAPS, "block_size": 8, "n_target_features": 768}  # fmt: skip
    gap("dflash", MIGRATED, keys, **window).check()
