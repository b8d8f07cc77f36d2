"""The pieces that both reference drafters share, written out in float32 torch. No cache, no batching, no speed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import Qwen3Config
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

Tensor = torch.Tensor


def load_checkpoint(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and all tensors of model.safetensors; floats become float32 (exact for f16 and bf16)."""
    config = json.loads((directory / "config.json").read_text())
    weights = load_file(directory / "model.safetensors")
    return config, {name: w.float() if w.is_floating_point() else w for name, w in weights.items()}


def of_layer(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with prefix, named without it."""
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def rope_theta(config: Mapping[str, Any]) -> float:
    """Base of the plain rotary embedding; transformers 4 and 5 keep it in different places. Refuses scaled rope."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise NotImplementedError(f"the reference drafters know plain full rotary embedding only, not {rope}")
    return float(rope.get("rope_theta") or config["rope_theta"])


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis."""
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def rope_frequencies(config: Mapping[str, Any]) -> tuple[Tensor, float]:
    """What `rotate` takes: angles per position [rotated / 2] and the factor on cos and sin, as transformers has them.

    Knows every scaling that transformers knows for Qwen3 (linear, yarn, llama3, ...) and partial rotation.
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    share = scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if kind == "default":
        half = int(config["head_dim"] * share) // 2
        return rope_theta_of(config) ** (-torch.arange(half, dtype=torch.float64) / half), 1.0
    parameters = {**scaling, "rope_type": kind, "rope_theta": rope_theta_of(config)}
    sizes = {k: config[k] for k in ("head_dim", "hidden_size", "num_attention_heads", "max_position_embeddings")}
    inverse, factor = ROPE_INIT_FUNCTIONS[kind](Qwen3Config(**sizes, rope_parameters=parameters), "cpu")
    return inverse.double(), factor


def rope_theta_of(config: Mapping[str, Any]) -> float:
    """Base of the rotary embedding, wherever transformers 4 and 5 keep it."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return float(scaling.get("rope_theta") or config["rope_theta"])


def rope(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Plain rotation of x [n, heads, head_dim] at positions [n] by the usual powers of theta."""
    half = x.shape[-1] // 2
    return rotate(x, positions, theta ** (-torch.arange(half, dtype=torch.float64) / half))


def rotate(x: Tensor, positions: Tensor, frequency: Tensor, factor: float = 1.0) -> Tensor:
    """Rotate x [n, heads, head_dim] at positions [n] by `frequency` [m]; dimensions from 2m on stay as they are.

    Dimension i is paired with i + m (the HF layout). `factor` is on cos and sin (yarn's attention factor).
    """
    half = len(frequency)
    angle = (positions.double()[:, None] * frequency)[:, None, :]
    cos, sin = angle.cos().float() * factor, angle.sin().float() * factor
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Grouped-query attention. q [nq, Hq, d], k and v [nk, Hkv, d], visible [nq, nk] bool. Returns [nq, Hq * d].

    `sinks` [Hq]: a logit per head that takes its share of the softmax and adds nothing.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    score = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    score = score.masked_fill(~visible, -torch.inf)
    if sinks is not None:
        score = torch.cat([score, sinks[:, None, None].expand(-1, len(q), 1)], -1)
    weight = score.softmax(-1)[..., : len(k)]
    return torch.einsum("hqk,khd->qhd", weight, v).flatten(1)


def swiglu(x: Tensor, weights: Mapping[str, Tensor], prefix: str, activation: str = "silu") -> Tensor:
    """Down(silu(gate x) * up x) with the weights `{prefix}gate_proj.weight` and so on, or with another activation."""
    gate, up, down = (weights[f"{prefix}{name}_proj.weight"] for name in ("gate", "up", "down"))
    return (ACT2FN[activation](x @ gate.T) * (x @ up.T)) @ down.T
