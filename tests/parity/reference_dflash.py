"""DFlash drafter, straight from its formula, for one block at a time.

    ctx    = rms(fc [hs of the tapped layers], hidden_norm)               one row per committed token
    x      = E[anchor, mask, ..., mask] * input_embedding_scale           E: the target's embeddings
    layer: h  = rms(x, input_layernorm)
           q  = rope(rms(Wq h, q_norm));  k, v of ctx and of h, k with k_norm and rope
           x += Wo attend(q, [k_ctx; k_h], [v_ctx; v_h]);  x += mlp(rms(x, post_attention_layernorm))
    logits = Head rms(x, norm)                                            Head: the target's output matrix
             times output_multiplier, then capped: c tanh(logits / c)

Committed tokens are at positions 0..n-1, the anchor at n, slot j at n + j, and slot j predicts the token at its own
position; slot 0 is not used. ctx does not pass input_layernorm. Every slot sees all of ctx; within the block a layer
is causal if the checkpoint says so. DFlash2 (`reference_dflash2`) adds convolutions and a selector.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from reference_math import (
    Tensor,
    attend,
    load_checkpoint,
    of_layer,
    rms,
    rope_frequencies,
    rotate,
    swiglu,
)

SLIDING = "sliding_attention"
MUSE_NAMES = {"encoder.fc.weight": "fc.weight", "encoder.output_norm_enc.weight": "hidden_norm.weight"}


@dataclass
class DFlash:
    """A checkpoint of z-lab, speculators or Muse-Glimmer, its config in z-lab's terms.

    causal_layers: where the layout states causality for each layer; None: z-lab's rule
    mask_row [H]: embedding of the mask token, if the checkpoint brings one
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    causal_layers: list[bool] | None = None
    mask_row: Tensor | None = None
    first_slot: ClassVar[int] = 1  # the first slot that drafts

    @classmethod
    def load(cls, directory: Path) -> DFlash:
        config, weights = load_checkpoint(directory)
        config, causal = in_zlab_terms(config)
        weights = {MUSE_NAMES.get(name, name): w for name, w in weights.items()}
        extra = directory / "mask_embedding.pt"
        row = torch.load(extra, weights_only=True) if extra.exists() else None
        if isinstance(row, dict):
            row = row.get("embedding", row.get("mask_embedding"))
        return cls(config, weights, causal, row)

    def of(self, key: str, default: Any = None) -> Any:
        """A drafter's key: nested, else at the top."""
        return self.config.get("dflash_config", {}).get(key, self.config.get(key, default))

    def taps_of(self, target_layers: int) -> list[int]:
        """Layers of the target whose *output* is read, in the order of the columns of fc."""
        return self.of("target_layer_ids")

    @property
    def mask_token(self) -> int:
        return self.of("mask_token_id")

    @property
    def block_size(self) -> int:
        return self.of("block_size")

    def causal(self, layer: int) -> bool:
        """One flag for all layers if the config has it; without it sliding layers are causal and full ones are not."""
        if self.causal_layers is not None:
            return self.causal_layers[layer]
        for value in (self.config.get("is_causal"), self.config.get("dflash_config", {}).get("causal")):
            if value is not None:
                return value
        return not self.of("use_swa") and self.layer_type(layer) == SLIDING

    def layer_type(self, layer: int) -> str:
        return (self.config.get("layer_types") or ["full_attention"] * self.config["num_hidden_layers"])[layer]

    def window(self, layer: int) -> int | None:
        """How many positions the layer sees, its own included; None for all."""
        if self.of("use_swa"):
            return self.of("swa_window_size")
        in_use = self.config.get("use_sliding_window") and self.layer_type(layer) == SLIDING
        return self.config.get("sliding_window") if in_use else None

    def context(self, features: Tensor) -> Tensor:
        """features [n, K * Ht], tapped layers side by side -> ctx [n, H]."""
        w = self.weights
        return rms(features @ w["fc.weight"].T, w["hidden_norm.weight"], self.config["rms_norm_eps"])

    def draft(self, ctx: Tensor, anchor: int, embeddings: Tensor, head: Tensor) -> Tensor:
        """Logits [B, V] of the block after ctx [n, H]; embeddings and head [V, H] are the target's."""
        return self.logits(self.states(ctx, anchor, embeddings), head)

    def states(self, ctx: Tensor, anchor: int, embeddings: Tensor) -> Tensor:
        """The block's last hidden states [B, H]."""
        eps, n, block = self.config["rms_norm_eps"], len(ctx), self.block_size
        key_at = torch.arange(n + block)
        query_at = key_at[n:]
        x = self.embed(anchor, self.weights.get("embed_tokens.weight", embeddings))
        for layer in range(self.config["num_hidden_layers"]):
            w = of_layer(self.weights, f"layers.{layer}.")
            h, finish = self.convolve(rms(x, w["input_layernorm.weight"], eps), w, "attention_conv.")
            x = x + finish(self.attention(layer, w, ctx, h, query_at, key_at))
            h, finish = self.convolve(rms(x, w["post_attention_layernorm.weight"], eps), w, "mlp_conv.")
            x = x + finish(swiglu(h, w, "mlp.", self.config.get("hidden_act", "silu")))
        return rms(x, self.weights["norm.weight"], eps)

    def embed(self, anchor: int, embeddings: Tensor) -> Tensor:
        mask = embeddings[self.mask_token] if self.mask_row is None else self.mask_row
        x = torch.stack([embeddings[anchor], *[mask] * (self.block_size - 1)])
        return x * self.of("input_embedding_scale", 1.0)

    def convolve(self, h: Tensor, _w: dict[str, Tensor], _prefix: str) -> tuple[Tensor, Any]:
        """DFlash2's convolution of a sublayer's input, and the one of its output. The first version has none."""
        return h, lambda y: y

    def attention(
        self, layer: int, w: dict[str, Tensor], ctx: Tensor, h: Tensor, query_at: Tensor, key_at: Tensor
    ) -> Tensor:
        eps, head_dim = self.config["rms_norm_eps"], self.config["head_dim"]
        frequency, factor = rope_frequencies(self.config)

        def project(rows: Tensor, name: str) -> Tensor:
            out = rows @ w[f"self_attn.{name}_proj.weight"].T + w.get(f"self_attn.{name}_proj.bias", 0.0)
            return out.unflatten(-1, (-1, head_dim))

        rows = torch.cat([ctx, h])
        q = rotate(rms(project(h, "q"), w["self_attn.q_norm.weight"], eps), query_at, frequency, factor)
        k = rotate(rms(project(rows, "k"), w["self_attn.k_norm.weight"], eps), key_at, frequency, factor)
        v = project(rows, "v") * self.of("attention_value_scale", 1.0)
        sinks = w.get("self_attn.attention_sink_bias")
        a = attend(q, k, v, self.visible(layer, query_at, key_at), sinks)
        return a @ w["self_attn.o_proj.weight"].T + w.get("self_attn.o_proj.bias", 0.0)

    def visible(self, layer: int, query_at: Tensor, key_at: Tensor) -> Tensor:
        """Which keys each query sees, [queries, keys] bool."""
        back = query_at[:, None] - key_at[None, :]
        visible = back >= 0 if self.causal(layer) else torch.ones_like(back, dtype=torch.bool)
        window = self.window(layer)
        return visible & (back.abs() < window) if window else visible

    def logits(self, states: Tensor, head: Tensor) -> Tensor:
        """Logits [B, V] over the target's vocabulary; tokens that a reduced one lacks have -inf."""
        logits = states @ self.weights.get("lm_head.weight", head).T * self.of("output_multiplier", 1.0)
        cap = self.of("final_logit_softcapping")
        logits = cap * torch.tanh(logits / cap) if cap else logits
        if "d2t" not in self.weights:
            return logits
        ids = self.weights["d2t"] + torch.arange(len(self.weights["d2t"]))
        return torch.full((len(states), self.config["vocab_size"]), -torch.inf).index_copy(1, ids, logits)


def in_zlab_terms(config: dict[str, Any]) -> tuple[dict[str, Any], list[bool] | None]:
    """The config under z-lab's keys, and causality per layer where z-lab's rule is not the layout's."""
    if config.get("model_type") == "muse_glimmer_assistant":
        return config | {"use_sliding_window": True, "vocab_size": None}, [False] * config["num_hidden_layers"]
    if "transformer_layer_config" not in config:
        return config, None
    inner = config["transformer_layer_config"]
    flat = {k: v for k, v in config.items() if k != "transformer_layer_config"} | inner
    flat["target_layer_ids"] = [i - 1 for i in config["aux_hidden_state_layer_ids"]]  # inputs there, outputs here
    free = config.get("sliding_window_non_causal", config["speculators_model_type"] == "dflash2")
    types = flat.get("layer_types") or ["full_attention"] * flat["num_hidden_layers"]
    return flat, [t == SLIDING and not free for t in types]
