"""Configs of published checkpoints at their real sizes, with tensors that have shapes and no data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dflash_convert.check import check_target
from dflash_convert.checkpoint import Checkpoint
from dflash_convert.drafter import Drafter
from dflash_convert.families import find_family
from dflash_convert.jsonfile import Config
from dflash_convert.target import Target
from dflash_convert.tensors import LazyTensor
from dflash_tools.errors import UserError

SLIDING, FULL = "sliding_attention", "full_attention"


def config(hidden: int, ff: int, heads: int, kv: int, vocab: int, layers: int = 5, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "hidden_size": hidden,
        "intermediate_size": ff,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": 128,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000,
        "attention_bias": False,
        **more,
    }


def windows(*types: str) -> dict[str, Any]:
    return {"layer_types": list(types), "use_sliding_window": True, "sliding_window": 2048, "max_window_layers": 5}


def nested(ids: list[int], mask: int, **more: Any) -> dict[str, Any]:
    return {"dflash_config": {"target_layer_ids": ids, "mask_token_id": mask, **more}}


SELECTOR = {"conv_kernel_size": 2, "conv_group_size": 16, "selector_rank": 256, "selector_top_k": 16}
MIMO = {"use_swa": True, "swa_window_size": 1024, "attention_value_scale": 0.612}
# name: config, the target's (architecture, layers), and keys that the file must have (None: must not)
PUBLISHED: dict[str, tuple[dict[str, Any], tuple[str, int], dict[str, Any]]] = {
    "Qwen3-4B-DFlash-b16": (
        config(2560, 9728, 32, 8, 151936, block_size=16, num_target_layers=36, **nested([1, 9, 17, 25, 33], 151669)),
        ("Qwen3ForCausalLM", 36),
        {"target_layers": [2, 10, 18, 26, 34], "block_size": 16, "attention.causal": None,
         "attention.sliding_window": None},
    ),
    "Qwen3.6-27B-DFlash": (
        config(5120, 17408, 32, 8, 248320, block_size=16, **windows(*[SLIDING] * 4, FULL),
               **nested([1, 16, 31, 46, 61], 248070)),
        ("Qwen3_5ForConditionalGeneration", 64),
        {"attention.causal_pattern": [True] * 4 + [False], "attention.causal": None, "attention.sliding_window": 2048,
         "attention.sliding_window_pattern": [True] * 4 + [False], "embedding_scale": None},
    ),
    "gemma-4-31B-it-DFlash": (
        config(5376, 10752, 64, 8, 262144, block_size=16, **windows(*[SLIDING] * 4, FULL),
               **nested([1, 12, 23, 35, 46, 57], 4)),
        ("Gemma4ForConditionalGeneration", 60),
        {"attention.causal_pattern": [True] * 4 + [False], "target_layers": [2, 13, 24, 36, 47, 58],
         "embedding_scale": pytest.approx(73.32, abs=0.01)},
    ),
    "Qwen3.8-27B-DFlash2": (
        config(5120, 17408, 32, 8, 248320, architectures=["DFlash2DraftModel"], is_causal=False,
               **windows(*[SLIDING] * 5), **nested([5, 19, 33, 47, 61], 248070, block_size=8, **SELECTOR)),
        ("Qwen3_5ForConditionalGeneration", 64),
        {"attention.causal": False, "attention.causal_pattern": None, "block_size": 8, "selector_top_k": 16},
    ),
    "Muse-Glimmer-30B-DFlash2": (
        config(6656, 19968, 32, 8, 202048, architectures=["DFlash2DraftModel"], is_causal=False,
               **windows(*[SLIDING] * 5),
               **nested([1, 13, 25, 37, 49], 201818, block_size=16, output_multiplier=0.19611613513818404,
                        final_logit_softcapping=20.0, **SELECTOR)),
        ("MuseGlimmerForConditionalGeneration", 52),
        {"logit_scale": pytest.approx(0.196116, abs=1e-6), "final_logit_softcapping": 20.0},
    ),
    "MiMo-V2.5-Pro-FP4-DFlash": (
        config(6144, 16384, 128, 8, 151936, block_size=8, partial_rotary_factor=0.5,
               **nested([0, 15, 31, 47, 69], 151669, **MIMO)),
        ("MiMoV2ForCausalLM", 70),
        {"attention.sliding_window": 1024, "attention.sliding_window_pattern": [True] * 5, "attention.causal": False,
         "target_layers": [1, 16, 32, 48, 70], "rope.dimension_count": 64},
    ),
}  # fmt: skip


def shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    own = {**c, **c.get("dflash_config", {})}
    hidden, ff, hd = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * hd, c["num_key_value_heads"] * hd
    found = {"fc.weight": (hidden, len(own["target_layer_ids"]) * hidden), "hidden_norm.weight": (hidden,),
             "norm.weight": (hidden,)}  # fmt: skip
    layer = {
        "input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q, hidden), "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden), "self_attn.o_proj.weight": (hidden, q),
        "self_attn.q_norm.weight": (hd,), "self_attn.k_norm.weight": (hd,),
        "mlp.gate_proj.weight": (ff, hidden), "mlp.up_proj.weight": (ff, hidden), "mlp.down_proj.weight": (hidden, ff),
    }  # fmt: skip
    if "selector_rank" in own:
        rank, groups = own["selector_rank"], hidden // own["conv_group_size"]
        found |= {f"candidate_selector.{n}_codebook": (c["vocab_size"], rank) for n in ("predecessor", "successor")}
        found["candidate_selector.hidden_projection.weight"] = (rank, hidden)
        for part in ("attention_conv", "mlp_conv"):
            layer[f"{part}.base_kernel"] = (2, own["conv_kernel_size"], hidden)
            layer[f"{part}.kernel_projection.weight"] = (2 * own["conv_kernel_size"] * groups, hidden)
    return found | {f"layers.{i}.{n}": s for i in range(c["num_hidden_layers"]) for n, s in layer.items()}


def read(name: str, tmp_path: Path, target_architecture: str | None = None, **changes: Any) -> Drafter:
    c, (architecture, layers), _ = PUBLISHED[name]
    c = json.loads(json.dumps(c)) | changes
    architecture = target_architecture or architecture
    path = tmp_path / "config.json"

    def no_data(start: int, stop: int) -> np.ndarray:
        raise AssertionError("no weight needs to be read")

    tensors = {n: LazyTensor(n, "BF16", s, tmp_path / "model.safetensors", no_data) for n, s in shapes(c).items()}
    checkpoint = Checkpoint(tmp_path, Config(path, c), tensors, ())
    target = Target(tmp_path, architecture, c["hidden_size"], c["vocab_size"], layers, mrope=False, tied=False)
    drafter = find_family(checkpoint).read(checkpoint, target)
    check_target(path, drafter, target)
    return drafter


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_says_what_its_authors_mean(name: str, tmp_path: Path) -> None:
    drafter = read(name, tmp_path)
    found = {k: v.value for k, v in drafter.extra.items()} | {"target_layers": list(drafter.taps)}
    for key, value in PUBLISHED[name][2].items():
        assert found.get(key) == value, key


def test_number_of_tensors_is_that_of_the_published_files(tmp_path: Path) -> None:
    assert len(read("Qwen3.6-27B-DFlash", tmp_path).tensors) == 58
    assert len(read("Qwen3.8-27B-DFlash2", tmp_path).tensors) == 81


def test_scale_that_a_gemma_drafter_states_itself_holds(tmp_path: Path) -> None:
    drafter = read("gemma-4-31B-it-DFlash", tmp_path, input_embedding_scale=1.0)
    assert drafter.extra["embedding_scale"].value == 1.0
    assert not any("as Gemma4" in note for note in drafter.notes)


def test_last_tap_needs_a_target_that_hands_it_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="input of layer 70"):
        read("MiMo-V2.5-Pro-FP4-DFlash", tmp_path, target_architecture="Qwen2ForCausalLM")
