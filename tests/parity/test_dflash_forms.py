"""What published DFlash checkpoints differ in: causality by layer, windows, rope, biases, mask tokens, layouts.

The fork must draft what the reference drafts from the same checkpoint. Where upstream's llama.cpp drafts something else
without saying so, the same file without the fork's key shows it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from parity_cases import TINY, Case
from random_drafters import write_dflash, write_muse, write_speculators
from reference_dflash import DFlash
from reference_dspark import DSpark
from safetensors.torch import load_file, save_file

SEED = 31
TAPS = [1, 3, 4]
FULL, SLIDING = "full_attention", "sliding_attention"
# narrower than both texts
WINDOW = {"use_sliding_window": True, "sliding_window": 20}
PUBLISHED_MIX = {**WINDOW, "num_hidden_layers": 3, "layer_types": [SLIDING, SLIDING, FULL]}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 64}
MIMO = {"use_swa": True, "swa_window_size": 24, "attention_value_scale": 0.612, "attention_sink_bias": True}


def without(*keys: str):
    """An edit of a GGUF that makes llama.cpp pass over keys: their names get another first letter."""

    def edit(path: Path) -> None:
        data = path.read_bytes()
        for key in keys:
            assert data.count(key.encode()) == 1, f"{path} has no {key}"
            data = data.replace(key.encode(), b"x" + key[1:].encode())
        path.write_bytes(data)

    return edit


@pytest.fixture
def check(drafts, drafter, tmp_path):
    """Write a checkpoint with `write`, draft with it, and compare with the reference."""

    def run(write, pair="qwen3", taps=TAPS, reference=DFlash, **changes):
        mask = changes.pop("mask", drafter(Case(pair, "dflash")).mask_token)
        checkpoint = write(tmp_path / "hf", TINY / pair / "target", SEED, taps, mask, **changes)
        gap = drafts(pair, checkpoint, "dflash", reference.load(checkpoint))
        print(gap)
        gap.check()

    return run


@pytest.mark.family("DFlash (z-lab), keys at the top level", runs="yes", parity="≥ 40 blocks")
def test_keys_at_the_top_level_and_taps_in_any_order(check, drafter):
    mask = drafter(Case("qwen3", "dflash")).mask_token
    check(write_dflash, taps=[4, 1, 3, 0], target_layer_ids=[4, 1, 3, 0], mask_token_id=mask, mask=None,
          dflash_config={"target_layer_ids": None})  # fmt: skip


def test_state_after_the_last_layer_of_a_hybrid(check):
    check(write_dflash, "qwen35", taps=[1, 4, 7])


@pytest.mark.family("DFlash (z-lab), yarn", runs="yes", parity="≥ 40 blocks")
def test_yarn(check):
    check(write_dflash, rope_scaling=YARN)


OWN_YARN = {
    "attention factor": {"attention_factor": 1.0},
    "range": {"beta_fast": 8.0, "beta_slow": 2.0},
    "not rounded": {"truncate": False},
    "quotient of scales": {"mscale": 0.7, "mscale_all_dim": 1.3},
}


@pytest.mark.parametrize("setting", OWN_YARN)
@pytest.mark.family("DFlash (z-lab), yarn with settings of its own", runs="yes", parity="≥ 40 blocks")
def test_yarn_with_settings_of_its_own(check, setting):
    check(write_dflash, rope_scaling=YARN | OWN_YARN[setting])


@pytest.mark.parametrize("setting", ["attention factor", "range"])
@pytest.mark.family("DFlash (z-lab), yarn with settings of its own", upstream="settings left out: no block equal")
def test_without_these_settings_other_tokens_are_drafted(drafts, drafter, tmp_path, setting):
    """llama.cpp's drafters pass over the keys that upstream writes for them."""
    mask, scaling = drafter(Case("qwen3", "dflash")).mask_token, YARN | OWN_YARN[setting]
    checkpoint = write_dflash(tmp_path / "hf", TINY / "qwen3" / "target", SEED, TAPS, mask, rope_scaling=scaling)
    reference = DFlash.load(checkpoint)
    file = checkpoint / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_scaling": YARN}))
    gap = drafts("qwen3", checkpoint, "dflash", reference)
    print(gap)
    assert gap.same_draft == 0


@pytest.mark.parametrize("pair", ["qwen3", "qwen35"])
@pytest.mark.family("DFlash (z-lab), llama3 rope", runs="yes", parity="≥ 40 blocks")
def test_llama3_rope_also_of_an_m_rope_target(check, pair):
    check(write_dflash, pair, rope_scaling=LLAMA3)


@pytest.mark.family("DFlash (z-lab), llama3 rope", upstream="scaling left out: no block equal")
def test_upstreams_file_drops_llama3_rope(drafts, drafter, tmp_path):
    mask = drafter(Case("qwen3", "dflash")).mask_token
    checkpoint = write_dflash(tmp_path / "hf", TINY / "qwen3" / "target", SEED, TAPS, mask, rope_scaling=LLAMA3)
    config = json.loads((checkpoint / "config.json").read_text())
    reference = DFlash.load(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps(config | {"rope_scaling": None}))
    gap = drafts("qwen3", checkpoint, "dflash", reference)
    print(gap)
    assert gap.same_draft == 0


@pytest.mark.parametrize("pair", ["qwen3", "qwen35"])
@pytest.mark.family(
    "DFlash (z-lab), sliding and full layers, no is_causal", converts="yes", runs="yes", parity="≥ 40 blocks"
)
def test_sliding_layers_are_causal_and_full_ones_not(check, pair):
    check(write_dflash, pair, **PUBLISHED_MIX)


@pytest.mark.family("DFlash (z-lab), sliding and full layers, no is_causal", upstream="at most 1 block in 4 equal")
def test_without_the_forks_key_other_tokens_are_drafted(drafts, drafter, tmp_path):
    mask = drafter(Case("qwen3", "dflash")).mask_token
    checkpoint = write_dflash(tmp_path / "hf", TINY / "qwen3" / "target", SEED, TAPS, mask, **PUBLISHED_MIX)
    edit = without("dflash.attention.causal_pattern")
    gap = drafts("qwen3", checkpoint, "dflash", DFlash.load(checkpoint), edit)
    print(gap)
    assert gap.same_draft <= gap.blocks / 4


@pytest.mark.family("DFlash (z-lab), use_sliding_window false", runs="yes", parity="≥ 40 blocks")
def test_sliding_layers_without_a_window_are_causal_still(check):
    check(write_dflash, **PUBLISHED_MIX | {"use_sliding_window": False})


@pytest.mark.family("DFlash (z-lab), all layers sliding, no is_causal", runs="yes", parity="≥ 40 blocks")
def test_only_sliding_layers_are_all_causal(check):
    check(write_dflash, **WINDOW, layer_types=[SLIDING] * 2)


@pytest.mark.parametrize("causal", [False, None])
@pytest.mark.family("DFlash (z-lab), window shorter than the block", converts="yes", runs="yes", parity="≥ 40 blocks")
def test_a_window_shorter_than_the_block_hides_the_future_as_well(check, causal):
    check(write_dflash, **WINDOW | {"sliding_window": 5}, layer_types=[SLIDING, FULL], is_causal=causal)


@pytest.mark.family("DFlash (z-lab), attention biases", converts="yes", runs="yes", parity="≥ 40 blocks")
def test_attention_biases(check):
    check(write_dflash, attention_bias=True)


def test_biases_are_reordered_with_interleaved_rope(drafts, drafter, tmp_path):
    """The same network, its rotated rows stored in neighbouring pairs."""
    mask = drafter(Case("qwen3", "dflash")).mask_token
    checkpoint = write_dflash(tmp_path / "hf", TINY / "qwen3" / "target", SEED, TAPS, mask, attention_bias=True)
    reference = DFlash.load(checkpoint)
    neighbours(checkpoint)
    drafts("qwen3", checkpoint, "dflash", reference).check()


def neighbours(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    half = config["head_dim"] // 2
    order = torch.arange(2 * half).view(2, half).T.flatten()
    weights = load_file(checkpoint / "model.safetensors")
    for name, w in weights.items():
        if ".q_" in name or ".k_" in name:
            weights[name] = w.unflatten(0, (-1, 2 * half))[:, order].flatten(0, 1).contiguous()
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    (checkpoint / "config.json").write_text(json.dumps(config | {"rope_is_neox_style": False}))


def test_scaled_embeddings_and_logits(check):
    check(write_dflash, input_embedding_scale=4.0, output_multiplier=0.5, final_logit_softcapping=20.0)


@pytest.mark.family("DFlash (MiMo)", converts="yes", runs="yes", parity="≥ 40 blocks")
def test_mimo_windows_all_layers_not_causal_with_sinks_and_scaled_values(check):
    check(write_dflash, dflash_config=MIMO, partial_rotary_factor=0.5)


def mask_row(checkpoint: Path, entry=lambda row, token: {"mask_token_id": token, "embedding": row}, token=0) -> Path:
    row = torch.randn(256, generator=torch.Generator().manual_seed(SEED))
    torch.save(entry(row, token), checkpoint / "mask_embedding.pt")
    return checkpoint


@pytest.mark.family("DFlash (MiMo)", converts="yes", runs="yes", parity="≥ 40 blocks")
def test_mask_row_of_its_own(drafts, drafter, tmp_path):
    mask = drafter(Case("qwen3", "dflash")).mask_token
    checkpoint = write_dflash(tmp_path / "hf", TINY / "qwen3" / "target", SEED, TAPS, mask)
    mask_row(checkpoint, token=mask)
    drafts("qwen3", checkpoint, "dflash", DFlash.load(checkpoint)).check()


@pytest.mark.family("DFlash (Alpamayo)", converts="yes", runs="yes", parity="≥ 40 blocks")
def test_mask_token_beyond_the_vocabulary_with_a_row_of_its_own(drafts, tmp_path):
    """All keys flat, the mask token one more than the target has."""
    vocab = json.loads((TINY / "qwen3" / "target" / "config.json").read_text())["vocab_size"]
    flat = {"dflash_config": {"target_layer_ids": None}, "target_layer_ids": TAPS, "mask_token_id": vocab}
    checkpoint = write_dflash(tmp_path / "hf", TINY / "qwen3" / "target", SEED, TAPS, None, **flat)
    mask_row(checkpoint, lambda row, token: {"mask_embedding": torch.nn.Parameter(row)})
    drafts("qwen3", checkpoint, "dflash", DFlash.load(checkpoint)).check()


@pytest.mark.family("DFlash (speculators)", converts="yes", runs="yes", parity="≥ 40 blocks")
def test_speculators_with_full_layers_on_a_hybrid(check):
    check(write_speculators, "qwen35")


@pytest.mark.family("DFlash (speculators), reduced vocabulary", converts="yes", runs="yes", parity="≥ 40 blocks")
def test_speculators_with_a_reduced_vocabulary_and_causal_sliding_layers(check):
    check(write_speculators, draft_vocab=300, **WINDOW, layer_types=[SLIDING, FULL])


@pytest.mark.family("DFlash (speculators), sample_from_anchor", converts="yes", runs="yes", parity="≥ 40 blocks")
def test_speculators_drafting_from_the_anchors_slot_on(check):
    check(write_speculators, reference=DSpark, sample_from_anchor=True, draft_vocab=300)


@pytest.mark.family("Muse-Glimmer assistant", converts="yes", runs="yes", parity="≥ 40 blocks")
def test_muse_is_never_causal(check):
    check(write_muse, sliding_window=24, layer_types=[SLIDING, FULL])
