"""Drafter checkpoints of random weights, for the forms that the trained pairs do not have.

The weights are drawn wide (q and k norms around 2, matrices of 1.5 / sqrt(width)), so that attention is peaked and the
slots of a block differ. With the usual narrow initialisation all slots give one token and a comparison shows nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


class Draw:
    """Seeded weights."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def matrix(self, rows: int, columns: int) -> torch.Tensor:
        return 1.5 * columns**-0.5 * torch.randn(rows, columns, generator=self.generator)

    def norm(self, width: int, around: float = 1.0) -> torch.Tensor:
        return around + 0.1 * torch.randn(width, generator=self.generator)

    def block(self, prefix: str, config: Mapping[str, Any], width: int) -> dict[str, torch.Tensor]:
        """Attention and mlp of one layer whose attention reads rows of `width`."""
        hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
        q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
        return {
            f"{prefix}input_layernorm.weight": self.norm(hidden),
            f"{prefix}post_attention_layernorm.weight": self.norm(hidden),
            f"{prefix}self_attn.q_proj.weight": self.matrix(q, width),
            f"{prefix}self_attn.k_proj.weight": self.matrix(kv, width),
            f"{prefix}self_attn.v_proj.weight": self.matrix(kv, width),
            f"{prefix}self_attn.o_proj.weight": self.matrix(hidden, q),
            f"{prefix}mlp.gate_proj.weight": self.matrix(inner, hidden),
            f"{prefix}mlp.up_proj.weight": self.matrix(inner, hidden),
            f"{prefix}mlp.down_proj.weight": self.matrix(hidden, inner),
        }

    def convolution(self, prefix: str, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """DFlash2's: the identity with enough of the rows before mixed in to matter."""
        hidden, taps = config["hidden_size"], config["conv_kernel_size"]
        base = 0.4 * torch.randn(2, taps, hidden, generator=self.generator)
        base[:, 0] += 1
        projection = 0.2 * self.matrix(2 * taps * (hidden // config["conv_group_size"]), hidden)
        return {f"{prefix}base_kernel": base, f"{prefix}kernel_projection.weight": projection}


def base_config(target: Path) -> dict[str, Any]:
    """What every drafter of this target has in common."""
    config = json.loads((target / "config.json").read_text())
    taken = ("vocab_size", "hidden_size", "max_position_embeddings", "rms_norm_eps", "eos_token_id")
    return {name: config[name] for name in taken} | {
        "num_target_layers": config["num_hidden_layers"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 192,
        "hidden_act": "silu",
        "attention_bias": False,
        "rope_theta": 10000.0,
    }


def write_dflash(folder: Path, target: Path, seed: int, taps: list[int], mask: int, **changes: Any) -> Path:
    """A z-lab style checkpoint; `changes` go into its config, those of `dflash_config` beside its taps and mask.

    The config decides the weights: `attention_bias`, `dflash_config.attention_sink_bias`, and DFlash2's sizes.
    """
    nested = {"target_layer_ids": taps, "mask_token_id": mask} | changes.pop("dflash_config", {})
    config = base_config(target) | {
        "architectures": ["DFlash2DraftModel" if "selector_rank" in nested else "DFlashDraftModel"],
        "model_type": "qwen3",
        "num_hidden_layers": 2,
        "block_size": 8,
        "tie_word_embeddings": False,
        "dflash_config": {name: value for name, value in nested.items() if value is not None},
    }
    config |= changes
    return write_checkpoint(folder, config, dflash_weights(config | nested, seed, len(taps)))


def write_muse(folder: Path, target: Path, seed: int, taps: list[int], mask: int, **changes: Any) -> Path:
    """A checkpoint as transformers saves a MuseGlimmerAssistantModel; it names no vocabulary."""
    config = base_config(target) | {
        "architectures": ["MuseGlimmerAssistantModel"],
        "model_type": "muse_glimmer_assistant",
        "num_hidden_layers": 2,
        "block_size": 8,
        "mask_token_id": mask,
        "target_layer_ids": taps,
    }
    config |= changes
    weights = dflash_weights(config, seed, len(taps))
    weights["encoder.fc.weight"] = weights.pop("fc.weight")
    weights["encoder.output_norm_enc.weight"] = weights.pop("hidden_norm.weight")
    del config["vocab_size"], config["attention_bias"]
    return write_checkpoint(folder, config, weights)


def write_speculators(
    folder: Path, target: Path, seed: int, taps: list[int], mask: int, *, draft_vocab: int | None = None, **changes: Any
) -> Path:
    """A checkpoint as speculators saves DFlash and DFlash2 (the latter if `changes` have its sizes).

    `taps` are outputs of layers as everywhere here; the file names the inputs. Keys of the transformer in `changes` go
    into `transformer_layer_config`.
    """
    inner = base_config(target) | {"model_type": "qwen3", "num_hidden_layers": 2}
    inner |= {name: changes.pop(name) for name in list(changes) if name not in SPECULATORS_KEYS}
    kind = "dflash2" if "selector_rank" in changes else "dflash"
    vocab = inner["vocab_size"]
    config = {
        "architectures": ["DFlash2DraftModel" if kind == "dflash2" else "DFlashDraftModel"],
        "speculators_model_type": kind,
        "speculators_version": "0.9.0",
        "transformer_layer_config": inner,
        "aux_hidden_state_layer_ids": [tap + 1 for tap in taps],
        "block_size": 8,
        "mask_token_id": mask,
        "draft_vocab_size": draft_vocab or vocab,
        "sample_from_anchor": False,
        **changes,
    }
    weights = dflash_weights(inner | config, seed, len(taps))
    if draft_vocab:
        draw = Draw(seed + 1)
        kept = torch.randperm(vocab, generator=draw.generator)[:draft_vocab].sort().values
        weights["lm_head.weight"] = draw.matrix(draft_vocab, inner["hidden_size"])
        weights["d2t"] = kept - torch.arange(draft_vocab)
        weights["t2d"] = torch.isin(torch.arange(vocab), kept)
    return write_checkpoint(folder, config, weights)


SPECULATORS_KEYS = {"block_size", "sliding_window_non_causal", "sample_from_anchor",
                    "conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k"}  # fmt: skip


def dflash_weights(config: Mapping[str, Any], seed: int, n_taps: int) -> dict[str, torch.Tensor]:
    """The tensors that a config calls for, under z-lab's names."""
    draw, hidden = Draw(seed), config["hidden_size"]
    weights = {
        "fc.weight": draw.matrix(hidden, n_taps * hidden),
        "hidden_norm.weight": draw.norm(hidden),
        "norm.weight": draw.norm(hidden),
    }
    for i in range(config["num_hidden_layers"]):
        layer = draw.block(f"layers.{i}.", config, hidden)
        layer[f"layers.{i}.self_attn.q_norm.weight"] = draw.norm(config["head_dim"], 2.0)
        layer[f"layers.{i}.self_attn.k_norm.weight"] = draw.norm(config["head_dim"], 2.0)
        if config.get("attention_bias"):
            rows = {name: w.shape[0] for name, w in layer.items() if name.endswith("_proj.weight") and "attn" in name}
            layer |= {name.replace(".weight", ".bias"): draw.norm(size, 0.0) * 5 for name, size in rows.items()}
        if config.get("attention_sink_bias"):
            layer[f"layers.{i}.self_attn.attention_sink_bias"] = draw.norm(config["num_attention_heads"], 2.0)
        if "selector_rank" in config:
            for part in ("attention_conv", "mlp_conv"):
                layer |= draw.convolution(f"layers.{i}.{part}.", config)
        weights |= layer
    if "selector_rank" in config:
        rank = config["selector_rank"]
        for name in ("predecessor", "successor"):
            # wide, so that the token before decides among the best of a slot
            weights[f"candidate_selector.{name}_codebook"] = 2 * draw.matrix(config["vocab_size"], rank)
        weights["candidate_selector.hidden_projection.weight"] = draw.matrix(rank, hidden)
    return weights


def write_eagle3(
    folder: Path, target: Path, seed: int, *, own_embeddings: bool, full_vocabulary: bool, **changes: Any
) -> Path:
    """A one-layer Llama-style checkpoint; `changes` go into its config, which decides the weights."""
    config = base_config(target) | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "tie_word_embeddings": False,
    }
    config |= changes
    draw, hidden, vocabulary = Draw(seed), config["hidden_size"], config["vocab_size"]
    small = vocabulary if full_vocabulary else vocabulary // 4
    config["draft_vocab_size"] = small
    places = {**config, **(config.get("eagle_config") or {})}
    ids = next((places[k] for k in ("eagle_aux_hidden_state_layer_ids", "target_layer_ids") if k in places), [0] * 3)
    width = len(ids) * (config.get("target_hidden_size") or hidden)
    weights = {
        "fc.weight": draw.matrix(hidden, width),
        "norm.weight": draw.norm(hidden),
        "lm_head.weight": draw.matrix(small, hidden),
        "midlayer.hidden_norm.weight": draw.norm(hidden),
        **draw.block("midlayer.", config, 2 * hidden),
    }
    if config["model_type"] == "qwen3":
        weights |= {f"midlayer.self_attn.{n}_norm.weight": draw.norm(config["head_dim"], 2.0) for n in "qk"}
    if (config.get("eagle_config") or config).get("norm_before_fc"):
        weights["input_norm.weight"] = draw.norm(width)
    if own_embeddings:
        weights["embed_tokens.weight"] = draw.matrix(vocabulary, hidden)
    if not full_vocabulary:
        kept = torch.randperm(vocabulary, generator=draw.generator)[:small].sort().values
        weights["d2t"] = kept - torch.arange(small)
        weights["t2d"] = torch.isin(torch.arange(vocabulary), kept)
    return write_checkpoint(folder, config, weights)


def write_checkpoint(folder: Path, config: Mapping[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    """config.json and model.safetensors in a new folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
