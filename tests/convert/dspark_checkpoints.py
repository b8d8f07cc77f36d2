"""Small random DSpark checkpoints in the layouts of DeepSpec, SpecForge and speculators."""

from __future__ import annotations

from typing import Any

import torch
from checkpoints import HIDDEN, MASK, VOCAB, Tensors, dflash_config, dflash_tensors

RANK = 16
DRAFT_VOCAB = 192
TAPS = [0, 2, 5]  # outputs of layers, as flat files name them
OWN = ("embed_tokens", "lm_head")
HEADS = {
    "markov_rank": RANK,
    "markov_head_type": "vanilla",
    "enable_confidence_head": True,
    "confidence_head_with_markov": True,
}
_SECTIONED = {
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"),
    *("num_hidden_layers", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "model_type"),
    *("layer_types", "sliding_window", "use_sliding_window", "max_window_layers", "attention_bias", "hidden_act"),
}


def deepspec(**overrides: Any) -> dict[str, Any]:
    """Flat keys; None takes a key away."""
    flat = {"target_layer_ids": TAPS, "mask_token_id": MASK, "num_anchors": 512, "num_target_layers": 8, **HEADS}
    changes = {"architectures": ["Qwen3DSparkModel"], "dflash_config": None, "block_size": 7, **flat, **overrides}
    return dflash_config(**changes)


def specforge(section: dict[str, Any] | None = None, **overrides: Any) -> dict[str, Any]:
    """DFlash's config with the heads' keys in `dflash_config`; `section` changes that one."""
    inner = {"mask_token_id": MASK, "target_layer_ids": TAPS, "projector_type": "dspark", **HEADS, **(section or {})}
    inner = {k: v for k, v in inner.items() if v is not None}
    return dflash_config(
        **{"architectures": ["DSparkDraftModel"], "block_size": 7, "dflash_config": inner, **overrides}
    )


def speculators(**overrides: Any) -> dict[str, Any]:
    """Nested; keys of the transformer go into their section, whatever the caller thinks. None takes a key away."""
    outer = {
        "architectures": ["DSparkDraftModel"],
        "speculators_model_type": "dspark",
        "speculators_version": "0.9.0",
        "speculators_config": {"algorithm": "dspark", "verifier": {"name_or_path": "some-org/Some-4B"}},
        "draft_vocab_size": DRAFT_VOCAB,
        "block_size": 8,
        "aux_hidden_state_layer_ids": [i + 1 for i in TAPS],
        "mask_token_id": MASK,
        "sample_from_anchor": True,
        "sliding_window_non_causal": False,
        "target_hidden_size": None,
        **HEADS,
    }
    inner = {k: v for k, v in dflash_config(**overrides).items() if k in _SECTIONED}
    outer |= {k: v for k, v in overrides.items() if k not in _SECTIONED}
    return {k: v for k, v in outer.items() if v is not None} | {"transformer_layer_config": inner}


def gemma4(**overrides: Any) -> dict[str, Any]:
    """DeepSpec's over Gemma 4: a copy of the target's text config with the drafter's keys. None takes a key away."""
    config = {
        "architectures": ["Gemma4DSparkModel"],
        "model_type": "gemma4_text",
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "head_dim": 16,
        "global_head_dim": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "sliding_window": 64,
        "layer_types": ["full_attention"] * 2,
        "attention_k_eq_v": True,
        "attention_bias": False,
        "enable_moe_block": False,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
        "block_size": 7,
        "target_layer_ids": TAPS,
        "mask_token_id": MASK,
        **HEADS,
        **overrides,
    }
    return {k: v for k, v in config.items() if v is not None}


def gemma4_tensors(config: dict[str, Any], seed: int = 0, own: tuple[str, ...] = OWN) -> Tensors:
    """Keys serve as values; four norms and a scalar a layer."""
    sizes = {"head_dim": 32, "num_key_value_heads": 1}
    found = dspark_tensors({**config, **sizes}, seed, own)
    for i in range(config["num_hidden_layers"]):
        del found[f"layers.{i}.self_attn.v_proj.weight"]
        gen = torch.Generator().manual_seed(seed + i)
        for name in ("pre", "post"):
            found[f"layers.{i}.{name}_feedforward_layernorm.weight"] = torch.randn(HIDDEN, generator=gen)
        found[f"layers.{i}.layer_scalar"] = torch.rand(1, generator=gen)
    return found


def places(config: dict[str, Any]) -> dict[str, Any]:
    """All keys of a config in one dictionary, whatever section they stand in."""
    found = dict(config)
    for section in ("dspark_config", "dflash_config", "transformer_layer_config"):
        found |= config.get(section) or {}
    return found


def dspark_tensors(config: dict[str, Any], seed: int = 0, own: tuple[str, ...] = ()) -> Tensors:
    """All tensors that the config calls for; `own` adds embeddings and a head over the whole vocabulary."""
    flat = places(config)
    ids = flat.get("target_layer_ids") or flat.get("aux_hidden_state_layer_ids") or TAPS
    found = dflash_tensors({**flat, "dflash_config": {"target_layer_ids": ids}}, seed, own)
    gen = torch.Generator().manual_seed(seed + 1000)
    rank, draft_vocab = flat.get("markov_rank") or 0, flat.get("draft_vocab_size") or VOCAB
    if rank:
        found["markov_head.markov_w1.weight"] = torch.randn(VOCAB, rank, generator=gen)
        found["markov_head.markov_w2.weight"] = torch.randn(draft_vocab, rank, generator=gen)
    if flat.get("enable_confidence_head"):
        width = HIDDEN + (rank if flat.get("confidence_head_with_markov") else 0)
        found["confidence_head.proj.weight"] = torch.randn(1, width, generator=gen)
        found["confidence_head.proj.bias"] = torch.randn(1, generator=gen)
    if draft_vocab < VOCAB:
        kept = torch.randperm(VOCAB, generator=gen)[:draft_vocab].sort().values
        found["lm_head.weight"] = torch.randn(draft_vocab, HIDDEN, generator=gen)
        found["d2t"] = kept - torch.arange(draft_vocab)
        found["t2d"] = torch.zeros(VOCAB, dtype=torch.bool).scatter(0, kept, True)
    return found
