"""Configs of published DSpark checkpoints at their real sizes, with tensors that have shapes and no data."""

from __future__ import annotations

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
from dspark_checkpoints import HEADS, places
from test_published_configs import config, shapes

RANK = 256
FULL_HEADS = {**HEADS, "markov_rank": RANK}
YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 8192, "rope_theta": 10000000}
QWEN36 = ("Qwen3_5ForConditionalGeneration", 64)


def nested(transformer: dict[str, Any], **own: Any) -> dict[str, Any]:
    inner = {k: v for k, v in transformer.items() if k != "architectures"}
    return {"architectures": ["DSparkDraftModel"], "speculators_model_type": "dspark", "speculators_version": "0.8.0",
            "transformer_layer_config": inner, **own}  # fmt: skip


# name: config, the target's (architecture, layers), keys that the file must have, number of tensors
PUBLISHED: dict[str, tuple[dict[str, Any], tuple[str, int], dict[str, Any], int]] = {
    "dspark_qwen3_4b_block7": (
        config(2560, 9728, 32, 8, 151936, architectures=["Qwen3DSparkModel"], block_size=7, num_anchors=512,
               target_layer_ids=[1, 9, 17, 25, 33], mask_token_id=151669, **FULL_HEADS),
        ("Qwen3ForCausalLM", 36),
        {"target_layers": [2, 10, 18, 26, 34], "block_size": 7, "sample_from_anchor": True,
         "has_confidence_head": True, "mask": 151669},
        58 + 4 + 2,
    ),
    "dflash_qwen3_8b_block7": (
        config(4096, 12288, 32, 8, 151936, architectures=["Qwen3DSparkModel"], block_size=7, num_anchors=512,
               target_layer_ids=[1, 9, 17, 25, 33], mask_token_id=151669, markov_rank=0, enable_confidence_head=False),
        ("Qwen3ForCausalLM", 36),
        {"sample_from_anchor": True, "has_confidence_head": False},
        58 + 2 + 2,
    ),
    "RadixArk Qwen3.8-27B-DSpark": (
        config(5120, 17408, 32, 8, 248320, architectures=["DSparkDraftModel"], block_size=7, mask_token_id=248070,
               rope_theta=None, rope_parameters=YARN, target_layer_ids=[5, 19, 33, 47, 61],
               dspark_config={"mask_token_id": 248070, **FULL_HEADS}),
        QWEN36,
        {"target_layers": [6, 20, 34, 48, 62], "sample_from_anchor": True, "mask": 248070,
         "rope.dimension_sections": [64, 0, 0, 0]},
        62,
    ),
    "RedHatAI Qwen3.8-27B-speculator.dspark": (
        nested(config(5120, 17408, 32, 8, 248320), aux_hidden_state_layer_ids=[4, 12, 20, 28, 36, 44, 52, 60],
               mask_token_id=248070, block_size=8, draft_vocab_size=248320, sample_from_anchor=False, **FULL_HEADS),
        QWEN36,
        {"target_layers": [4, 12, 20, 28, 36, 44, 52, 60], "sample_from_anchor": False, "block_size": 8},
        62,
    ),
}  # fmt: skip


def read(name: str, tmp_path: Path) -> Drafter:
    c, (architecture, layers), _, _ = PUBLISHED[name]
    flat = places(c)
    ids = flat.get("target_layer_ids") or flat["aux_hidden_state_layer_ids"]
    found = shapes({**flat, "dflash_config": {}, "target_layer_ids": ids})
    hidden, vocab = flat["hidden_size"], flat["vocab_size"]
    if flat["markov_rank"]:
        found |= {f"markov_head.markov_w{i}.weight": (vocab, RANK) for i in (1, 2)}
        found |= {"confidence_head.proj.weight": (1, hidden + RANK), "confidence_head.proj.bias": (1,)}
    if c["architectures"] == ["Qwen3DSparkModel"]:
        found |= {"embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}

    def no_data(start: int, stop: int) -> np.ndarray:
        raise AssertionError("no weight needs to be read")

    tensors = {n: LazyTensor(n, "BF16", s, tmp_path / "model.safetensors", no_data) for n, s in found.items()}
    path = tmp_path / "config.json"
    target = Target(tmp_path, architecture, hidden, vocab, layers, mrope=layers == 64, tied=False)
    checkpoint = Checkpoint(tmp_path, Config(path, c), tensors, ())
    drafter = find_family(checkpoint).read(checkpoint, target)
    check_target(path, drafter, target)
    return drafter


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_says_what_its_authors_mean(name: str, tmp_path: Path) -> None:
    drafter = read(name, tmp_path)
    found = {k: v.value for k, v in drafter.extra.items()}
    found |= {"target_layers": list(drafter.taps), "mask": drafter.mask_token_id}
    _, _, keys, tensors = PUBLISHED[name]
    assert {k: found.get(k) for k in keys} == keys
    assert len(drafter.tensors) == tensors
