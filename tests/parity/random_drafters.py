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
    """A z-lab style checkpoint; `changes` go into its config."""
    config = base_config(target) | {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "num_hidden_layers": 2,
        "block_size": 8,
        "tie_word_embeddings": False,
        "dflash_config": {"target_layer_ids": taps, "mask_token_id": mask},
    }
    config |= changes
    draw, hidden = Draw(seed), config["hidden_size"]
    weights = {
        "fc.weight": draw.matrix(hidden, len(taps) * hidden),
        "hidden_norm.weight": draw.norm(hidden),
        "norm.weight": draw.norm(hidden),
    }
    for i in range(config["num_hidden_layers"]):
        weights |= draw.block(f"layers.{i}.", config, hidden)
        weights[f"layers.{i}.self_attn.q_norm.weight"] = draw.norm(config["head_dim"], 2.0)
        weights[f"layers.{i}.self_attn.k_norm.weight"] = draw.norm(config["head_dim"], 2.0)
    return _write(folder, config, weights)


def write_eagle3(
    folder: Path, target: Path, seed: int, *, own_embeddings: bool, full_vocabulary: bool, **changes: Any
) -> Path:
    """A one-layer Llama-style checkpoint; `changes` go into its config."""
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
    weights = {
        "fc.weight": draw.matrix(hidden, 3 * hidden),
        "norm.weight": draw.norm(hidden),
        "lm_head.weight": draw.matrix(small, hidden),
        "midlayer.hidden_norm.weight": draw.norm(hidden),
        **draw.block("midlayer.", config, 2 * hidden),
    }
    if own_embeddings:
        weights["embed_tokens.weight"] = draw.matrix(vocabulary, hidden)
    if not full_vocabulary:
        kept = torch.randperm(vocabulary, generator=draw.generator)[:small].sort().values
        weights["d2t"] = kept - torch.arange(small)
        weights["t2d"] = torch.isin(torch.arange(vocabulary), kept)
    return _write(folder, config, weights)


def _write(folder: Path, config: Mapping[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
