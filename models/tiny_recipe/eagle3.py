"""The EAGLE3 drafter: one layer that guesses token after token, from features of the target, then from its own states.

Formula (of the published checkpoints): at position t the input is the embedding of token t + 1 and the feature
g_t = fc(concat of three taps), each normed, concatenated to twice the hidden size; the residual is g_t itself. The
layer's output before the final norm takes the place of g in the next step. The head covers a part of the vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from .layers import MLP, RMSNorm, rope_angles, rotate, split_heads
from .optim import Optimiser

DEPTH = 6  # steps unrolled in training
STEP_DECAY = 0.85


@dataclass(frozen=True)
class Shape:
    """Sizes of a drafter; `taps` are ids of the layers whose *input* is read."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    taps: tuple[int, int, int]
    theta: float
    vocabulary: int

    @classmethod
    def of_target(cls, target: PreTrainedModel, taps: tuple[int, ...], vocabulary: int) -> Shape:
        c = target.config
        if len(taps) != 3:
            raise ValueError(f"EAGLE3 reads exactly three layers, got {taps}")
        return cls(
            hidden=c.hidden_size,
            inner=c.intermediate_size,
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            taps=taps,
            theta=c.rope_parameters["rope_theta"],
            vocabulary=vocabulary,
        )


@dataclass
class KeysValues:
    """What later queries see: keys (already rotated) and values, [b, kv heads, n, head dim]."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        self.q_proj = nn.Linear(2 * s.hidden, s.heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(2 * s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(2 * s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.hidden, bias=False)

    def forward(self, x: Tensor, step: int, earlier: list[KeysValues]) -> Tensor:
        """Row t of step j is position t + j of the chain that left the text after position t.

        It sees the text's keys up to t (step 0) and, of each later step up to its own, the key of its own chain.
        """
        s = self.shape
        n = x.shape[1]
        angles = rope_angles((torch.arange(n) + step).expand(len(x), -1), s.head_dim, s.theta)
        q = rotate(split_heads(self.q_proj(x), s.head_dim), angles)
        earlier.append(
            KeysValues(rotate(split_heads(self.k_proj(x), s.head_dim), angles), split_heads(self.v_proj(x), s.head_dim))
        )
        group = s.heads // s.kv_heads
        keys = [kv.keys.repeat_interleave(group, dim=1) for kv in earlier]
        values = [kv.values.repeat_interleave(group, dim=1) for kv in earlier]
        text = (q @ keys[0].mT).masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
        chain = [(q * key).sum(-1, keepdim=True) for key in keys[1:]]
        weights = (torch.cat([text, *chain], dim=-1).float() * s.head_dim**-0.5).softmax(-1).to(values[0].dtype)
        out = weights[..., :n] @ values[0]
        for i, value in enumerate(values[1:]):
            out = out + weights[..., n + i, None] * value
        return self.o_proj(out.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(s.hidden)
        self.hidden_norm = RMSNorm(s.hidden)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = RMSNorm(s.hidden)
        self.mlp = MLP(s.hidden, s.inner)

    def forward(self, embedded: Tensor, state: Tensor, step: int, earlier: list[KeysValues]) -> Tensor:
        both = torch.cat([self.input_layernorm(embedded), self.hidden_norm(state)], dim=-1)
        x = state + self.self_attn(both, step, earlier)
        return x + self.mlp(self.post_attention_layernorm(x))


class Eagle3(nn.Module):
    """The drafter without embedding; its state dict with `d2t` and `t2d` is the published checkpoint."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.fc = nn.Linear(3 * shape.hidden, shape.hidden, bias=False)
        self.midlayer = Layer(shape)
        self.norm = RMSNorm(shape.hidden)
        self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)

    def forward(self, embedded: Tensor, state: Tensor, step: int, earlier: list[KeysValues]) -> tuple[Tensor, Tensor]:
        """One step for all rows: (logits [b, n, draft vocabulary], states for the next step [b, n, h])."""
        state = self.midlayer(embedded, state, step, earlier)
        return self.lm_head(self.norm(state)), state


def features_of(hidden_states: tuple[Tensor, ...], taps: tuple[int, ...]) -> Tensor:
    """[b, n, 3 h]: inputs of the tapped layers, where hidden_states[0] is the input of layer 0."""
    return torch.cat([hidden_states[tap] for tap in taps], dim=-1)


def draft_vocabulary(batches: Iterator[Tensor], size: int, always: list[int], vocabulary: int) -> Tensor:
    """The `size` most frequent token ids of some batches, in ascending order; `always` are among them."""
    counts = torch.zeros(vocabulary, dtype=torch.long)
    for batch in batches:
        counts += torch.bincount(batch.flatten(), minlength=vocabulary)
    counts[always] = counts.max() + 1
    return counts.topk(size).indices.sort().values


def train_eagle3(
    target: PreTrainedModel, batches: Iterator[Tensor], shape: Shape, ids_kept: Tensor, steps: int, seed: int
) -> Eagle3:
    """Train with `DEPTH` unrolled steps on the target's own distribution over the draft vocabulary."""
    torch.manual_seed(seed)
    drafter = Eagle3(shape)
    with torch.no_grad():
        drafter.fc.weight.copy_((torch.eye(shape.hidden) / 3).repeat(1, 3))
        drafter.lm_head.weight.copy_(target.lm_head.weight[ids_kept])
        drafter.norm.weight.copy_(target.model.norm.weight)
    drafter.train()
    optimiser = Optimiser(drafter, steps)
    started = time.monotonic()
    for step in range(steps):
        ids = next(batches)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            out = target.model(ids, output_hidden_states=True)
            labels = target.lm_head(out.last_hidden_state)[..., ids_kept].float().log_softmax(-1)
            features = features_of(out.hidden_states, shape.taps).bfloat16()
            embedded = target.get_input_embeddings()(ids)
        loss, first = _loss(drafter, embedded, features, labels)
        optimiser.step(loss)
        if step % 20 == 0 or step == steps - 1:
            print(
                f"eagle3 step {step} loss {loss.item():.3f} step 1 right {first:.2f} "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
    return drafter.eval()


def _loss(drafter: Eagle3, embedded: Tensor, features: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    length = embedded.shape[1] - DEPTH - 1
    total, weights, first = torch.zeros(()), 0.0, 0.0
    earlier: list[KeysValues] = []
    with torch.autocast("cpu", torch.bfloat16):
        state = drafter.fc(features[:, :length])
        for step in range(DEPTH):
            logits, state = drafter(embedded[:, step + 1 : step + 1 + length], state, step, earlier)
            wanted = labels[:, step + 1 : step + 1 + length]
            loss = F.kl_div(logits.float().log_softmax(-1), wanted, reduction="none", log_target=True).sum(-1).mean()
            total = total + STEP_DECAY**step * loss
            weights += STEP_DECAY**step
            if step == 0:
                first = (logits.argmax(-1) == wanted.argmax(-1)).float().mean().item()
    return total / weights, first


def eagle3_tensors(drafter: Eagle3, ids_kept: Tensor, vocabulary: int) -> dict[str, Tensor]:
    """State dict plus `d2t` (target id minus draft id) and `t2d` (whether a target id is in the draft vocabulary)."""
    in_draft = torch.zeros(vocabulary, dtype=torch.bool)
    in_draft[ids_kept] = True
    return {**drafter.state_dict(), "d2t": ids_kept - torch.arange(len(ids_kept)), "t2d": in_draft}


def eagle3_config(target: PreTrainedModel, shape: Shape) -> dict[str, Any]:
    """config.json in the flat layout of SpecForge's `LlamaForCausalLMEagle3`, layer ids at the top level."""
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "draft_vocab_size": shape.vocabulary,
        "dtype": "bfloat16",
        "eagle_aux_hidden_state_layer_ids": list(shape.taps),
        "eos_token_id": target.config.eos_token_id,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.inner,
        "max_position_embeddings": target.config.max_position_embeddings,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": 1,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": shape.theta, "rope_type": "default"},
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": target.config.vocab_size,
    }


def shape_from_config(config: dict[str, Any]) -> Shape:
    """The inverse of `eagle3_config`."""
    return Shape(
        hidden=config["hidden_size"],
        inner=config["intermediate_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        taps=tuple(config["eagle_aux_hidden_state_layer_ids"]),
        theta=config["rope_parameters"]["rope_theta"],
        vocabulary=config["draft_vocab_size"],
    )
