"""EAGLE3 drafter, straight from its formula, for one chain of drafts at a time.

    g_t    = fc [hs of the three tapped layers at t]
    pair t = (token t + 1, g_t), at rotary position t
    u      = [rms(E[token], input_layernorm), rms(g, hidden_norm)]
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
from reference_math import Tensor, attend, load_checkpoint, of_layer, rms, rope, rope_theta, swiglu


@dataclass
class Eagle3:
    """A one-layer Llama-style checkpoint (`midlayer.*` or `layers.0.*`), with or without own embeddings."""

    config: dict[str, Any]
    weights: dict[str, Tensor]

    @classmethod
    def load(cls, directory: Path) -> Eagle3:
        config, weights = load_checkpoint(directory)
        return cls(config, {name.replace("midlayer.", "layers.0."): w for name, w in weights.items()})

    def taps_of(self, target_layers: int) -> list[int]:
        """Layers of the target whose *output* is read.

        Ids at top level (vLLM, speculators) name the layer whose input is read, ids in `eagle_config` (SpecForge) the
        layer whose output is read; without either the inputs of layers 2, L/2 and L - 3 are meant.
        """
        nested = (self.config.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
        if nested:
            return list(nested)
        default = [2, target_layers // 2, target_layers - 3]
        return [i - 1 for i in self.config.get("eagle_aux_hidden_state_layer_ids") or default]

    def context(self, features: Tensor) -> Tensor:
        """features [n, 3 * Ht], tapped layers side by side -> g [n, H]."""
        if self.config.get("norm_before_fc"):
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
        tokens, features, logits = list(tokens[1:]), g, []
        for _ in range(count):
            p = self.last_state(embeddings[torch.tensor(tokens)], features)
            row = torch.full((len(embeddings),), -torch.inf)
            row[ids] = (rms(p, w["norm.weight"], self.config["rms_norm_eps"]) @ own_head.T)[0]
            logits.append(row)
            tokens, features = [*tokens, int(row.argmax())], torch.cat([features, p])
        return torch.stack(logits)

    def last_state(self, e: Tensor, g: Tensor) -> Tensor:
        """Pairs of embeddings and features, both [m, H] -> state p [1, H] of the last pair, which sees all of them."""
        config, eps, theta = self.config, self.config["rms_norm_eps"], rope_theta(self.config)
        w = of_layer(self.weights, "layers.0.")
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        at = torch.arange(len(g))
        hidden = rms(g, w["hidden_norm.weight"], eps)
        u = torch.cat([rms(e, w["input_layernorm.weight"], eps), hidden], -1)
        q, k, v = ((u @ w[f"self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, head_dim)) for name in "qkv")
        everything = torch.ones(1, len(g), dtype=torch.bool)
        a = attend(rope(q[-1:], at[-1:], theta), rope(k, at, theta), v, everything)
        h = (hidden if config.get("norm_before_residual") else g)[-1:] + a @ w["self_attn.o_proj.weight"].T
        return h + swiglu(rms(h, w["post_attention_layernorm.weight"], eps), w, "mlp.")
