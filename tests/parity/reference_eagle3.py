"""EAGLE3 drafter, straight from its formula, for one chain of drafts at a time.

    g_t    = fc [hs of the three tapped layers at t]
    pair t = (token t + 1, g_t), at rotary position t
    u      = [rms(E[token], input_layernorm), rms(g, hidden_norm)]       (Qwen3's layers norm the heads of q and k)
    h      = res + Wo attend(rope(Wq u), rope(Wk u), Wv u)      causal, so a pair's state depends on no later pair;
    p      = h + mlp(rms(h, post_attention_layernorm))          res = g, with norm_before_residual rms(g, hidden_norm)
    logits = Head rms(p, norm)                                  over the draft vocabulary: target id = i + d2t[i]

After n committed tokens the last true pair is n - 1 = (anchor, g_{n-1}); its logits give the first draft. Then the pair
at n is (first draft, p of the pair before), and so on: the drafter reads its own state where no feature exists yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reference_math import Tensor, attend, load_checkpoint, of_layer, rms, rope_frequencies, rotate, swiglu


@dataclass
class Eagle3:
    """A one-layer Llama- or Qwen3-style checkpoint (`midlayer.*` or `layers.0.*`), with or without own embeddings.

    Knows the flat layouts and speculators' nested one, whose ids are inputs and whose trainer norms the residual.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]

    @classmethod
    def load(cls, directory: Path) -> Eagle3:
        config, weights = load_checkpoint(directory)
        if "transformer_layer_config" in config:
            config = {"norm_before_residual": True, **config["transformer_layer_config"], **config}
        config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
        return cls(config, {name.replace("midlayer.", "layers.0."): w for name, w in weights.items()})

    def taps_of(self, target_layers: int) -> list[int]:
        """Layers of the target whose *output* is read.

        Ids at top level (vLLM, speculators) name the layer whose input is read, ids in `eagle_config` (SpecForge) the
        layer whose output is read, as `target_layer_ids` (DeepSpec) do; without any the inputs of layers 2, L/2 and
        L - 3 are meant.
        """
        nested = (self.config.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
        nested = nested or self.config.get("target_layer_ids")
        if nested:
            return list(nested)
        default = [2, target_layers // 2, target_layers - 3]
        return [i - 1 for i in self.config.get("eagle_aux_hidden_state_layer_ids") or default]

    def context(self, features: Tensor) -> Tensor:
        """features [n, 3 * Ht], tapped layers side by side -> g [n, H]."""
        if self.config.get("norm_before_fc") or (self.config.get("eagle_config") or {}).get("norm_before_fc"):
            features = rms(features, self.weights["input_norm.weight"], self.config["rms_norm_eps"])
        return features @ self.weights["fc.weight"].T

    def draft(self, g: Tensor, tokens: list[int], count: int, embeddings: Tensor, head: Tensor) -> Tensor:
        """Logits [count, V] of `count` greedy drafts after g [n, H] and tokens [n + 1], the last one being the anchor.

        -inf where the draft vocabulary has no such token. embeddings and head [V, H] are the target's; those of the
        checkpoint go first.
        """
        w = self.weights
        embeddings, own_head = w.get("embed_tokens.weight", embeddings), w.get("lm_head.weight", head)
        ids = torch.arange(len(own_head)) + w.get("d2t", torch.zeros(len(own_head), dtype=torch.long))
        residual, q, k, v = self.projected(embeddings[torch.tensor(tokens[1:])], g, 0)
        logits = []
        for _ in range(count):
            p = self.state(residual[-1:], q[-1:], k, v)
            row = torch.full((len(embeddings),), -torch.inf)
            row[ids] = (rms(p, w["norm.weight"], self.config["rms_norm_eps"]) @ own_head.T)[0]
            logits.append(row)
            residual, q, *new = self.projected(embeddings[row.argmax()][None], p, len(k))
            k, v = torch.cat([k, new[0]]), torch.cat([v, new[1]])
        return torch.stack(logits)

    def projected(self, e: Tensor, g: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pairs of embeddings and features, both [m, H], the first at position `first`.

        Returns what the residual starts from [m, H], and q, k (rotated) and v [m, heads, head_dim].
        """
        config, eps = self.config, self.config["rms_norm_eps"]
        w, turn = of_layer(self.weights, "layers.0."), rope_frequencies(config)
        hidden = rms(g, w["hidden_norm.weight"], eps)
        u = torch.cat([rms(e, w["input_layernorm.weight"], eps), hidden], -1)
        q, k, v = ((u @ w[f"self_attn.{n}_proj.weight"].T).unflatten(-1, (-1, config["head_dim"])) for n in "qkv")
        if "self_attn.q_norm.weight" in w:
            q, k = rms(q, w["self_attn.q_norm.weight"], eps), rms(k, w["self_attn.k_norm.weight"], eps)
        at = torch.arange(first, first + len(g))
        residual = hidden if config.get("norm_before_residual") else g
        return residual, rotate(q, at, *turn), rotate(k, at, *turn), v

    def state(self, residual: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """State p [1, H] of the last pair, whose residual and q are given and which sees all pairs."""
        w = of_layer(self.weights, "layers.0.")
        a = attend(q, k, v, torch.ones(1, len(k), dtype=torch.bool))
        h = residual + a @ w["self_attn.o_proj.weight"].T
        return h + swiglu(rms(h, w["post_attention_layernorm.weight"], self.config["rms_norm_eps"]), w, "mlp.")
