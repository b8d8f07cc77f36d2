"""DSpark straight from its formula: the backbone is DFlash's (`reference_dflash`), then slot after slot

    scores of k = cap(scale Head hid_k) + W2 W1[t],  cap(z) = c tanh(z / c),  t: the token before the one drafted
    conf of k   = sigmoid(w . [hid_k ; W1[t]] + b)       without W1[t] if the head is as wide as hid_k

Anchor-first slots 0..B-1 draft the tokens after the anchor; with a bonus anchor slots 1..B-1 do, in their own place.
With a reduced vocabulary W2 has a row per draft token, W1 one per token of the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from reference_dflash import DFlash
from reference_math import Tensor, attend, of_layer, rms, rotate, swiglu


@dataclass
class DSpark(DFlash):
    """A checkpoint of DeepSpec, SpecForge or speculators with a vanilla Markov head or none."""

    @classmethod
    def load(cls, directory: Path) -> DSpark:
        model = super().load(directory)
        spread = model.config.get("dspark_config", {})
        return replace(model, config=spread | {k: v for k, v in model.config.items() if k != "dspark_config"})

    @property
    def first_slot(self) -> int:
        """The first slot that drafts. Flat files that do not say draft from the anchor's, nested ones do not."""
        return 0 if self.of("sample_from_anchor", "speculators_model_type" not in self.config) else 1

    def before(self, anchor: int, draft: Sequence[int]) -> Tensor:
        """The token before each drafted one [drafted]."""
        return torch.tensor([anchor, *draft[:-1]])

    def scores(self, states: Tensor, logits: Tensor, anchor: int, draft: Sequence[int]) -> Tensor:
        """Scores [drafted, V] that each token of `draft` is chosen by, given the ones before it."""
        slots = slice(self.first_slot, self.first_slot + len(draft))
        w1, w2 = (self.weights.get(f"markov_head.markov_w{i}.weight") for i in (1, 2))
        if w1 is None or w2 is None:
            return logits[slots]
        bias = w1[self.before(anchor, draft)] @ w2.T
        if "d2t" in self.weights:
            ids = self.weights["d2t"] + torch.arange(len(self.weights["d2t"]))
            bias = torch.zeros_like(logits[slots]).index_copy(1, ids, bias)
        return logits[slots] + bias

    def confidences(self, states: Tensor, anchor: int, draft: Sequence[int]) -> Tensor | None:
        """How likely each drafted token is kept [drafted], as the model estimates it; None without such a head."""
        w = self.weights.get("confidence_head.proj.weight")
        if w is None:
            return None
        rows = states[self.first_slot : self.first_slot + len(draft)]
        if w.shape[1] > rows.shape[1]:
            rows = torch.cat([rows, self.weights["markov_head.markov_w1.weight"][self.before(anchor, draft)]], -1)
        return torch.sigmoid(rows @ w[0] + self.weights.get("confidence_head.proj.bias", torch.zeros(1)))


@dataclass
class Gemma4DSpark(DSpark):
    """The same over Gemma 4's full-attention layers.

        v = rms(Wk rows) without weights;  softmax(q k) unscaled;  x = E[..] sqrt(H);  MLP with gelu
        x += rms(Wo attend, post_attention_layernorm);  x += rms(mlp(rms(x, pre_feedforward_layernorm)),
        post_feedforward_layernorm);  x *= layer_scalar

    Only the first share of a head's pairs is rotated, by the frequencies that the whole head would have.
    """

    def states(self, ctx: Tensor, anchor: int, embeddings: Tensor) -> Tensor:
        eps, n, block = self.config["rms_norm_eps"], len(ctx), self.block_size
        head_dim, hidden = self.config["global_head_dim"], self.config["hidden_size"]
        at = torch.arange(n + block)
        frequency = self.frequencies(head_dim)
        x = self.embed(anchor, self.weights.get("embed_tokens.weight", embeddings)) * hidden**0.5
        for layer in range(self.config["num_hidden_layers"]):
            w = of_layer(self.weights, f"layers.{layer}.")
            rows = torch.cat([ctx, rms(x, w["input_layernorm.weight"], eps)])
            q = (rows[n:] @ w["self_attn.q_proj.weight"].T).unflatten(-1, (-1, head_dim))
            k = (rows @ w["self_attn.k_proj.weight"].T).unflatten(-1, (-1, head_dim))
            v = rms(k, torch.ones(head_dim), eps)
            q = rotate(rms(q, w["self_attn.q_norm.weight"], eps), at[n:], frequency)
            k = rotate(rms(k, w["self_attn.k_norm.weight"], eps), at, frequency)
            # `attend` divides by sqrt(head_dim), Gemma 4 does not
            a = attend(q * head_dim**0.5, k, v, self.visible(layer, at[n:], at)) @ w["self_attn.o_proj.weight"].T
            x = x + rms(a, w["post_attention_layernorm.weight"], eps)
            m = swiglu(rms(x, w["pre_feedforward_layernorm.weight"], eps), w, "mlp.", "gelu_pytorch_tanh")
            x = (x + rms(m, w["post_feedforward_layernorm.weight"], eps)) * w["layer_scalar"]
        return rms(x, self.weights["norm.weight"], eps)

    def frequencies(self, head_dim: int) -> Tensor:
        """Angles per position [head_dim / 2], 0 for the pairs that are not rotated."""
        rope = self.config["rope_parameters"]
        rope = rope.get("full_attention", rope)
        share = rope["partial_rotary_factor"] if rope["rope_type"] == "proportional" else 1.0
        pairs = torch.arange(head_dim // 2, dtype=torch.float64)
        return torch.where(pairs < int(head_dim * share / 2), rope["rope_theta"] ** (-2 * pairs / head_dim), 0.0)


def greedy_draft(model: DSpark, states: Tensor, logits: Tensor, anchor: int) -> list[int]:
    """The tokens that DSpark drafts at temperature 0, each chosen after the ones before it."""
    draft: list[int] = []
    for _ in range(model.block_size - model.first_slot):
        draft.append(int(model.scores(states, logits, anchor, [*draft, 0])[-1].argmax()))
    return draft
