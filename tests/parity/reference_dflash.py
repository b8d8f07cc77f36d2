"""DFlash drafter, straight from its formula, for one block at a time.

    ctx    = rms(fc [hs of the tapped layers], hidden_norm)               one row per committed token
    x      = E[anchor, mask, ..., mask]                                   E: the target's embeddings
    layer: h  = rms(x, input_layernorm)
           q  = rope(rms(Wq h, q_norm));  k, v of ctx and of h, k with k_norm and rope
           x += Wo attend(q, [k_ctx; k_h], [v_ctx; v_h]);  x += mlp(rms(x, post_attention_layernorm))
    logits = Head rms(x, norm)                                            Head: the target's output matrix

Committed tokens are at positions 0..n-1, the anchor at n, slot j at n + j, and slot j predicts the token at its own
position; slot 0 is not used. ctx does not pass input_layernorm. Every slot sees all of ctx; within the block a layer
is causal if the checkpoint says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reference_math import Tensor, attend, load_checkpoint, of_layer, rms, rope, rope_theta, swiglu


@dataclass
class DFlash:
    """A z-lab style checkpoint (`DFlashDraftModel`, flat config) with full vocabulary and without own embeddings."""

    config: dict[str, Any]
    weights: dict[str, Tensor]

    @classmethod
    def load(cls, directory: Path) -> DFlash:
        return cls(*load_checkpoint(directory))

    def taps_of(self, target_layers: int) -> list[int]:
        """Layers of the target whose *output* is read, in the order of the columns of fc."""
        return self.config["dflash_config"]["target_layer_ids"]

    @property
    def mask_token(self) -> int:
        return self.config["dflash_config"]["mask_token_id"]

    @property
    def block_size(self) -> int:
        return self.config["dflash_config"].get("block_size") or self.config["block_size"]

    def causal(self, layer: int) -> bool:
        """One flag for all layers if the config has it; without it sliding layers are causal and full ones are not."""
        if "is_causal" in self.config:
            return self.config["is_causal"]
        return self.layer_type(layer) == "sliding_attention"

    def layer_type(self, layer: int) -> str:
        return (self.config.get("layer_types") or ["full_attention"] * self.config["num_hidden_layers"])[layer]

    def context(self, features: Tensor) -> Tensor:
        """features [n, K * Ht], tapped layers side by side -> ctx [n, H]."""
        w = self.weights
        return rms(features @ w["fc.weight"].T, w["hidden_norm.weight"], self.config["rms_norm_eps"])

    def draft(self, ctx: Tensor, anchor: int, embeddings: Tensor, head: Tensor) -> Tensor:
        """Logits [B, V] of the block after ctx [n, H]; embeddings and head [V, H] are the target's."""
        config, eps, theta = self.config, self.config["rms_norm_eps"], rope_theta(self.config)
        n, block = len(ctx), self.block_size
        key_at = torch.arange(n + block)
        query_at = key_at[n:]
        x = embeddings[torch.tensor([anchor] + [self.mask_token] * (block - 1))]
        for layer in range(config["num_hidden_layers"]):
            w = of_layer(self.weights, f"layers.{layer}.")

            def project(rows: Tensor, name: str, w: dict[str, Tensor] = w) -> Tensor:
                return (rows @ w[f"self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, config["head_dim"]))

            h = rms(x, w["input_layernorm.weight"], eps)
            rows = torch.cat([ctx, h])
            q = rope(rms(project(h, "q"), w["self_attn.q_norm.weight"], eps), query_at, theta)
            k = rope(rms(project(rows, "k"), w["self_attn.k_norm.weight"], eps), key_at, theta)
            a = attend(q, k, project(rows, "v"), self.visible(layer, query_at, key_at))
            x = x + a @ w["self_attn.o_proj.weight"].T
            x = x + swiglu(rms(x, w["post_attention_layernorm.weight"], eps), w, "mlp.")
        return rms(x, self.weights["norm.weight"], eps) @ head.T

    def visible(self, layer: int, query_at: Tensor, key_at: Tensor) -> Tensor:
        """Which keys each query sees, [queries, keys] bool."""
        back = query_at[:, None] - key_at[None, :]
        visible = back >= 0 if self.causal(layer) else torch.ones_like(back, dtype=torch.bool)
        window = self.config.get("sliding_window") if self.config.get("use_sliding_window") else None
        if window and self.layer_type(layer) == "sliding_attention":
            visible = visible & (back.abs() < window)
        return visible
