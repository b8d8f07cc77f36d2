"""Small random checkpoints of the layouts of the DFlash line besides z-lab's first version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from checkpoints import HIDDEN, MASK, VOCAB, Tensors, dflash_config, dflash_tensors, make_target
from safetensors.torch import save_file

SIZES = {"conv_kernel_size": 2, "conv_group_size": 16, "selector_rank": 32, "selector_top_k": 7}
NESTED = {"mask_token_id": MASK, "target_layer_ids": [0, 2, 5]}
DRAFT_VOCAB = 100
MUSE_NAMES = {"fc.weight": "encoder.fc.weight", "hidden_norm.weight": "encoder.output_norm_enc.weight"}


def dflash2_config(nested: dict[str, Any] | None = None, **overrides: Any) -> dict[str, Any]:
    """z-lab's second version; None takes a key of `nested` away."""
    keys = {k: v for k, v in {**NESTED, **SIZES, **(nested or {})}.items() if v is not None}
    return dflash_config(**{"architectures": ["DFlash2DraftModel"], "dflash_config": keys, **overrides})


def dflash2_tensors(config: dict[str, Any], seed: int = 0) -> Tensors:
    sizes = {**SIZES, **config, **config.get("dflash_config", {})}
    gen = torch.Generator().manual_seed(seed + 1000)
    taps, rank, groups = sizes["conv_kernel_size"], sizes["selector_rank"], HIDDEN // sizes["conv_group_size"]
    found = dflash_tensors(config, seed)
    for i in range(config["num_hidden_layers"]):
        for part in ("attention_conv", "mlp_conv"):
            found[f"layers.{i}.{part}.base_kernel"] = torch.randn(2, taps, HIDDEN, generator=gen)
            rows = 2 * taps * groups
            found[f"layers.{i}.{part}.kernel_projection.weight"] = torch.randn(rows, HIDDEN, generator=gen)
    for name in ("predecessor", "successor"):
        found[f"candidate_selector.{name}_codebook"] = torch.randn(VOCAB, rank, generator=gen)
    found["candidate_selector.hidden_projection.weight"] = torch.randn(rank, HIDDEN, generator=gen)
    return found


def muse_config(**overrides: Any) -> dict[str, Any]:
    own = {
        "architectures": ["MuseGlimmerAssistantModel"],
        "model_type": "muse_glimmer_assistant",
        "dflash_config": None,
        "mask_token_id": MASK,
        "target_layer_ids": [0, 2, 5],
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_theta": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "vocab_size": None,
        "tie_word_embeddings": None,
    }
    config = dflash_config(**own | overrides)
    return {k: v for k, v in config.items() if k != "rope_scaling"}


def muse_tensors(config: dict[str, Any], seed: int = 0) -> Tensors:
    found = dflash_tensors({**config, "vocab_size": VOCAB}, seed)
    return {MUSE_NAMES.get(name, name): t for name, t in found.items()}


def speculators_config(second: bool = False, **overrides: Any) -> dict[str, Any]:
    """As speculators saves DFlash or DFlash2. Keys that the section has by default go into it."""
    flat = dflash_config()
    outside = {"architectures", "block_size", "dflash_config", "rope_scaling", "tie_word_embeddings"}
    inner = {k: v for k, v in flat.items() if k not in outside}
    inner |= {k: overrides.pop(k) for k in list(overrides) if k in inner or k in _TRANSFORMER}
    config = {
        "architectures": ["DFlash2DraftModel" if second else "DFlashDraftModel"],
        "speculators_model_type": "dflash2" if second else "dflash",
        "speculators_version": "0.9.0",
        "speculators_config": {"algorithm": "dflash2" if second else "dflash", "verifier": {"name_or_path": "a/b"}},
        "transformer_layer_config": inner,
        "aux_hidden_state_layer_ids": [1, 3, 6],
        "block_size": 8,
        "draft_vocab_size": VOCAB,
        "mask_token_id": MASK,
        "sample_from_anchor": False,
        **(SIZES if second else {}),
        **overrides,
    }
    return {k: v for k, v in config.items() if v is not None}


_TRANSFORMER = {"layer_types", "use_sliding_window", "sliding_window", "rope_parameters", "attention_bias"}


def as_zlab(config: dict[str, Any]) -> dict[str, Any]:
    """A speculators config in z-lab's layout, for tensors and for files that must be the same."""
    nested = {"mask_token_id": config["mask_token_id"], "block_size": config["block_size"]}
    nested["target_layer_ids"] = [i - 1 for i in config["aux_hidden_state_layer_ids"]]
    nested |= {k: config[k] for k in SIZES if k in config}
    return {**config["transformer_layer_config"], "architectures": config["architectures"], "dflash_config": nested}


def speculators_tensors(config: dict[str, Any], seed: int = 0) -> Tensors:
    flat = as_zlab(config)
    found = (dflash2_tensors if "conv_kernel_size" in config else dflash_tensors)(flat, seed)
    if config["draft_vocab_size"] < VOCAB:
        gen = torch.Generator().manual_seed(seed)
        ids = torch.randperm(VOCAB, generator=gen)[: config["draft_vocab_size"]].sort().values
        found["lm_head.weight"] = torch.randn(len(ids), HIDDEN, generator=gen)
        found["d2t"] = ids - torch.arange(len(ids))
        found["t2d"] = torch.zeros(VOCAB, dtype=torch.bool).scatter(0, ids, True)
    return found


def biased(tensors: Tensors) -> Tensors:
    """With attention biases, of the sizes of the weights."""
    rows = {n: len(t) for n, t in tensors.items() if n.endswith("_proj.weight") and "attn" in n}
    gen = torch.Generator().manual_seed(9)
    return tensors | {n.replace(".weight", ".bias"): torch.randn(size, generator=gen) for n, size in rows.items()}


def target_with_weights(directory: Path, **overrides: Any) -> Path:
    """A target of which embeddings and head are there, in bfloat16."""
    make_target(directory, **{"eos_token_id": [2, 0], **overrides})
    gen = torch.Generator().manual_seed(77)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    tied = overrides.get("tie_word_embeddings", False)
    weights = {n: torch.randn(VOCAB, HIDDEN, generator=gen).bfloat16() for n in names[: 1 if tied else 2]}
    save_file(weights, directory / "model.safetensors")
    return directory
