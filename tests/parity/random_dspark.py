"""DSpark checkpoints of random weights in the layouts of DeepSpec, SpecForge and speculators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from random_drafters import Draw, base_config, dflash_weights, write_checkpoint

RANK = 16
HEADS = {
    "markov_rank": RANK,
    "markov_head_type": "vanilla",
    "enable_confidence_head": True,
    "confidence_head_with_markov": True,
}
_TRANSFORMER = {"num_hidden_layers", "num_key_value_heads", "layer_types", "sliding_window", "use_sliding_window",
                "rope_scaling", "rope_theta", "attention_bias", "hidden_act"}  # fmt: skip
Weights = dict[str, torch.Tensor]


def write_deepspec(
    folder: Path, target: Path, seed: int, taps: list[int], mask: int, own: Weights | None = None, **changes: Any
) -> Path:
    """Flat keys. `own` are the embeddings and the head that the checkpoint brings."""
    config = _qwen3(target) | HEADS | {"architectures": ["Qwen3DSparkModel"], "block_size": 7, "num_anchors": 512}
    config |= {"target_layer_ids": taps, "mask_token_id": mask, **changes}
    return write_checkpoint(folder, config, _weights(config, seed, len(taps)) | (own or {}))


def write_specforge(folder: Path, target: Path, seed: int, taps: list[int], mask: int, **changes: Any) -> Path:
    """The heads' keys in `dflash_config`."""
    config = _qwen3(target) | {"architectures": ["DSparkDraftModel"], "block_size": 7}
    transformer = {k: changes.pop(k) for k in list(changes) if k in _TRANSFORMER | {"block_size"}}
    nested = HEADS | {"target_layer_ids": taps, "mask_token_id": mask, "projector_type": "dspark", **changes}
    config |= {"dflash_config": nested, **transformer}
    return write_checkpoint(folder, config, _weights(config | nested, seed, len(taps)))


def write_dspark_speculators(
    folder: Path, target: Path, seed: int, taps: list[int], mask: int, draft_vocab: int | None = None, **changes: Any
) -> Path:
    """The transformer in a section of its own. `taps` are outputs as everywhere here; the file names the inputs."""
    inner = _qwen3(target) | {k: changes.pop(k) for k in list(changes) if k in _TRANSFORMER}
    vocab = inner["vocab_size"]
    config = HEADS | {
        "architectures": ["DSparkDraftModel"],
        "speculators_model_type": "dspark",
        "speculators_version": "0.9.0",
        "transformer_layer_config": inner,
        "aux_hidden_state_layer_ids": [tap + 1 for tap in taps],
        "block_size": 8,
        "mask_token_id": mask,
        "draft_vocab_size": draft_vocab or vocab,
        "sample_from_anchor": True,
        "sliding_window_non_causal": False,
    }
    config |= changes
    config = {k: v for k, v in config.items() if v is not None}
    return write_checkpoint(folder, config, _weights(inner | config, seed, len(taps)))


def write_gemma4(
    folder: Path, target: Path, seed: int, taps: list[int], mask: int, own: Weights | None = None, **changes: Any
) -> Path:
    """DeepSpec's over Gemma 4's layers, whatever the target: wider heads than Qwen3's, one of them for keys."""
    config = base_config(target) | HEADS | {"architectures": ["Gemma4DSparkModel"], "model_type": "gemma4_text"}
    config |= {"num_hidden_layers": 2, "block_size": 7, "num_anchors": 512, "target_layer_ids": taps}
    config |= {"mask_token_id": mask, "attention_k_eq_v": True, "hidden_activation": "gelu_pytorch_tanh"}
    config |= {"global_head_dim": 64, "num_global_key_value_heads": 1, "layer_types": ["full_attention"] * 2}
    config["rope_parameters"] = {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config |= changes
    sizes = {"head_dim": config["global_head_dim"], "num_key_value_heads": config["num_global_key_value_heads"]}
    found = _weights(config | sizes, seed, len(taps)) | (own or {})
    draw = Draw(seed + 2)
    for i in range(config["num_hidden_layers"]):
        del found[f"layers.{i}.self_attn.v_proj.weight"]
        for name in ("q", "k"):
            # nothing divides the scores here, so that norms around 2 would leave one key each
            found[f"layers.{i}.self_attn.{name}_norm.weight"] /= 4
        for name in ("pre", "post"):
            found[f"layers.{i}.{name}_feedforward_layernorm.weight"] = draw.norm(config["hidden_size"])
        found[f"layers.{i}.layer_scalar"] = draw.norm(1, 0.7)
    # embeddings are multiplied by sqrt(hidden size): the sublayers must not drown in them
    for i in range(config["num_hidden_layers"]):
        found[f"layers.{i}.post_attention_layernorm.weight"] *= 8
        found[f"layers.{i}.post_feedforward_layernorm.weight"] *= 8
    return write_checkpoint(folder, config, found)


def _qwen3(target: Path) -> dict[str, Any]:
    return base_config(target) | {"model_type": "qwen3", "num_hidden_layers": 2, "tie_word_embeddings": False}


def _weights(config: Mapping[str, Any], seed: int, n_taps: int) -> Weights:
    """The tensors that a config (all of its keys in one) calls for."""
    draw, found = Draw(seed + 1), dflash_weights(config, seed, n_taps)
    hidden, vocab, rank = config["hidden_size"], config["vocab_size"], config["markov_rank"]
    small = config.get("draft_vocab_size") or vocab
    if rank:
        # as large as logits, so that the token before decides which one is drafted
        found["markov_head.markov_w1.weight"] = draw.matrix(vocab, rank)
        found["markov_head.markov_w2.weight"] = 6 * draw.matrix(small, rank)
    if config["enable_confidence_head"]:
        width = hidden + (rank if config["confidence_head_with_markov"] else 0)
        found["confidence_head.proj.weight"] = draw.matrix(1, width)
        found["confidence_head.proj.bias"] = draw.norm(1, -0.5)
    if small < vocab:
        kept = torch.randperm(vocab, generator=draw.generator)[:small].sort().values
        found["lm_head.weight"] = draw.matrix(small, hidden)
        found["d2t"] = kept - torch.arange(small)
        found["t2d"] = torch.isin(torch.arange(vocab), kept)
    return found
