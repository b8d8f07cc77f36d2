"""The pieces that both reference drafters share, written out in float32 torch. No cache, no batching, no speed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

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


def rope(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotate x [n, heads, head_dim] at positions [n]; dimension i is paired with i + head_dim/2 (the HF layout)."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = (positions.double()[:, None] * frequency)[:, None, :]
    cos, sin = angle.cos().float(), angle.sin().float()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Grouped-query attention. q [nq, Hq, d], k and v [nk, Hkv, d], visible [nq, nk] bool. Returns [nq, Hq * d]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    score = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    weight = score.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weight, v).flatten(1)


def swiglu(x: Tensor, weights: Mapping[str, Tensor], prefix: str) -> Tensor:
    """Down(silu(gate x) * up x) with the weights `{prefix}gate_proj.weight` and so on."""
    gate, up, down = (weights[f"{prefix}{name}_proj.weight"] for name in ("gate", "up", "down"))
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
