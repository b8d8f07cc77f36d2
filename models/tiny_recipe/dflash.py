"""The DFlash drafter: guesses a block of tokens at once from features of the target, and how it is trained.

Formula (of the published checkpoints): features of the tapped layers, concatenated and projected by `fc` and
`hidden_norm`, enter every layer as extra keys and values; the block is [last token, mask, mask, ...] at the positions
that follow, attends to all features before it and to itself in both directions, and slot k guesses the token at its own
position. Embedding and head are the target's.
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

BLOCK = 8
SLOT_DECAY = 4.0  # slot k weighs exp(-(k - 1) / 4): a slot only matters if all before it were right


@dataclass(frozen=True)
class Shape:
    """Sizes of a drafter; `taps` are ids of the layers whose output is read, as z-lab's files count."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    taps: tuple[int, ...]
    theta: float
    mask_token: int

    @classmethod
    def of_target(cls, target: PreTrainedModel, layers: int, taps: tuple[int, ...], mask_token: int) -> Shape:
        c = target.config
        return cls(
            hidden=c.hidden_size,
            inner=c.intermediate_size,
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            layers=layers,
            taps=taps,
            theta=c.rope_parameters["rope_theta"],
            mask_token=mask_token,
        )


class Attention(nn.Module):
    """Queries from the block; keys and values from the features and the block."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.head_dim = s.head_dim
        self.q_proj = nn.Linear(s.hidden, s.heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.hidden, bias=False)
        self.q_norm = RMSNorm(s.head_dim)
        self.k_norm = RMSNorm(s.head_dim)

    def forward(self, block: Tensor, context: Tensor, angles: Any, mask: Tensor) -> Tensor:
        block_angles, all_angles = angles
        both = torch.cat([context, block], dim=1)
        q = rotate(self.q_norm(split_heads(self.q_proj(block), self.head_dim)), block_angles)
        k = rotate(self.k_norm(split_heads(self.k_proj(both), self.head_dim)), all_angles)
        v = split_heads(self.v_proj(both), self.head_dim)
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(s.hidden)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = RMSNorm(s.hidden)
        self.mlp = MLP(s.hidden, s.inner)

    def forward(self, x: Tensor, context: Tensor, angles: Any, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), context, angles, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class DFlash(nn.Module):
    """The drafter without embedding and head; its state dict is the published checkpoint."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.fc = nn.Linear(len(shape.taps) * shape.hidden, shape.hidden, bias=False)
        self.hidden_norm = RMSNorm(shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden)

    def forward(self, block: Tensor, positions: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """Hidden states [b, q, h] of block embeddings [b, q, h] at positions [b, q].

        `features` [b, n, taps * h] are those of positions 0..n-1; `mask` [b, 1, q, n + q] is true where a query may
        look.
        """
        context = self.hidden_norm(self.fc(features))
        before = torch.arange(features.shape[1]).expand(len(block), -1)
        s = self.shape
        angles = (
            rope_angles(positions, s.head_dim, s.theta),
            rope_angles(torch.cat([before, positions], dim=1), s.head_dim, s.theta),
        )
        for layer in self.layers:
            block = layer(block, context, angles, mask)
        return self.norm(block)


def features_of(hidden_states: tuple[Tensor, ...], taps: tuple[int, ...]) -> Tensor:
    """[b, n, taps * h]: outputs of the tapped layers, where hidden_states[0] is the embedding."""
    return torch.cat([hidden_states[tap + 1] for tap in taps], dim=-1)


def warm_start(drafter: DFlash, target: PreTrainedModel) -> None:
    """Begin as the mean of the taps followed by the target's last attention layers: saves half of the training.

    The hybrid's attention has a gate beside each query (left out here) and norms that store weight - 1.
    """
    gated = target.config.model_type.startswith("qwen3_5")
    bias = 1.0 if gated else 0.0
    attention = [layer for layer in target.model.layers if hasattr(layer, "self_attn")][-len(drafter.layers) :]
    with torch.no_grad():
        for layer, source in zip(drafter.layers, attention, strict=True):
            weights = dict(source.state_dict())
            if gated:
                q = weights["self_attn.q_proj.weight"].unflatten(0, (-1, 2, drafter.shape.head_dim))
                weights["self_attn.q_proj.weight"] = q[:, 0].flatten(0, 1)
            for name, parameter in layer.named_parameters():
                parameter.copy_(weights[name] + (bias if "norm" in name else 0.0))
        drafter.norm.weight.copy_(target.model.norm.weight + bias)
        eye = torch.eye(drafter.shape.hidden) / len(drafter.shape.taps)
        drafter.fc.weight.copy_(eye.repeat(1, len(drafter.shape.taps)))


def train_dflash(
    target: PreTrainedModel, batches: Iterator[Tensor], shape: Shape, steps: int, anchors: int, seed: int
) -> DFlash:
    """Train on batches [b, n] of ids: a block at each of some random anchors, labelled by the target's distribution."""
    torch.manual_seed(seed)
    drafter = DFlash(shape)
    warm_start(drafter, target)
    drafter.train()
    optimiser = Optimiser(drafter, steps)
    started = time.monotonic()
    for step in range(steps):
        ids = next(batches)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            out = target.model(ids, output_hidden_states=True)
            labels = target.lm_head(out.last_hidden_state).float().log_softmax(-1)
            features = features_of(out.hidden_states, shape.taps).bfloat16()
        loss, first = _loss(drafter, target, ids, features, labels, anchors)
        optimiser.step(loss)
        if step % 20 == 0 or step == steps - 1:
            print(
                f"dflash step {step} loss {loss.item():.3f} slot 1 right {first:.2f} "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
    return drafter.eval()


def _loss(
    drafter: DFlash, target: PreTrainedModel, ids: Tensor, features: Tensor, labels: Tensor, anchors: int
) -> tuple[Tensor, float]:
    rows, length = ids.shape
    starts = torch.stack([torch.randperm(length - BLOCK - 1)[:anchors] + 1 for _ in range(rows)])  # [b, a]
    positions = starts[..., None] + torch.arange(BLOCK)  # [b, a, 8]
    tokens = torch.full_like(positions, drafter.shape.mask_token)
    tokens[..., 0] = ids.gather(1, starts)
    owner = torch.arange(anchors).repeat_interleave(BLOCK)
    own_block = (owner[:, None] == owner[None, :]).expand(rows, -1, -1)
    before = torch.arange(length) < starts.repeat_interleave(BLOCK, dim=1)[..., None]
    mask = torch.cat([before, own_block], dim=-1)[:, None]
    with torch.autocast("cpu", torch.bfloat16):
        embedded = target.get_input_embeddings()(tokens.flatten(1))
        hidden = drafter(embedded, positions.flatten(1), features, mask)
        hidden = hidden.unflatten(1, (anchors, BLOCK))[:, :, 1:]
        logits = target.lm_head(hidden).float()
    wanted = labels[
        torch.arange(rows)[:, None, None], positions[..., 1:] - 1
    ]  # what the target says for the slot's place
    weight = torch.exp(-torch.arange(BLOCK - 1) / SLOT_DECAY)
    loss = F.kl_div(logits.log_softmax(-1), wanted, reduction="none", log_target=True).sum(-1)
    first = (logits[:, :, 0].argmax(-1) == wanted[:, :, 0].argmax(-1)).float().mean().item()
    return (loss * weight).mean() / weight.mean(), first


def dflash_config(target: PreTrainedModel, shape: Shape) -> dict[str, Any]:
    """config.json in the flat layout of z-lab's checkpoints."""
    return {
        "architectures": ["DFlashDraftModel"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "block_size": BLOCK,
        "bos_token_id": None,
        "dflash_config": {"mask_token_id": shape.mask_token, "target_layer_ids": list(shape.taps)},
        "dtype": "bfloat16",
        "eos_token_id": target.config.eos_token_id,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.inner,
        "layer_types": ["full_attention"] * shape.layers,
        "max_position_embeddings": target.config.max_position_embeddings,
        "max_window_layers": shape.layers,
        "model_type": "qwen3",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "num_target_layers": target.config.num_hidden_layers,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": shape.theta, "rope_type": "default"},
        "sliding_window": None,
        "tie_word_embeddings": target.config.tie_word_embeddings,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": target.config.vocab_size,
    }


def shape_from_config(config: dict[str, Any]) -> Shape:
    """The inverse of `dflash_config`."""
    return Shape(
        hidden=config["hidden_size"],
        inner=config["intermediate_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        layers=config["num_hidden_layers"],
        taps=tuple(config["dflash_config"]["target_layer_ids"]),
        theta=config["rope_parameters"]["rope_theta"],
        mask_token=config["dflash_config"]["mask_token_id"],
    )
