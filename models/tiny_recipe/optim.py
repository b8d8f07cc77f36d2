"""Muon for matrices, AdamW for everything else, one schedule for both.

Muon (Jordan et al., 2024): momentum, then the nearest half-orthogonal matrix by five Newton-Schulz steps. Matrices of
one shape are orthogonalised in one batch: they are too small to keep the processor busy alone.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the odd polynomial a x + b x^3 + c x^5 that pulls singular values towards 1


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Half-orthogonal approximations of [n, rows, cols] matrices; singular values end up between 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Optimiser:
    """Steps a module; `vectors` of the embedding kind (names given) and all non-matrices go to AdamW."""

    def __init__(
        self, module: nn.Module, steps: int, matrix_rate: float = 0.02, other_rate: float = 3e-3, warm_up: float = 0.04
    ) -> None:
        self.module, self.steps, self.warm_up, self.done = module, steps, warm_up, 0
        self.matrix_rate, self.other_rate = matrix_rate, other_rate
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        others = []
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.ndim == 2 and "embed" not in name and "lm_head" not in name:
                by_shape[parameter.shape].append(parameter)
            else:
                others.append(parameter)
        self.groups = list(by_shape.values())
        self.momentum = [torch.zeros(len(group), *group[0].shape) for group in self.groups]
        self.adam = torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.95), weight_decay=0.0)

    def rate(self) -> float:
        """Share of the full rate: linear warm-up, then a cosine down to 2 %."""
        progress = self.done / self.steps
        if progress < self.warm_up:
            return (self.done + 1) / (self.warm_up * self.steps + 1)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - self.warm_up) / (1 - self.warm_up)))

    @torch.no_grad()
    def step(self, loss: Tensor) -> None:
        """Backward, clip to norm 1, update."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        share = self.rate()
        for group, momentum in zip(self.groups, self.momentum, strict=True):
            gradient = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in group])
            momentum.mul_(0.95).add_(gradient)
            update = orthogonalise(gradient.add(momentum, alpha=0.95))
            rows, cols = group[0].shape
            scale = self.matrix_rate * share * max(1.0, rows / cols) ** 0.5
            for parameter, direction in zip(group, update, strict=True):
                parameter.mul_(1 - 0.01 * share * self.matrix_rate).sub_(direction, alpha=scale)
        for settings in self.adam.param_groups:
            settings["lr"] = self.other_rate * share
        self.adam.step()
        self.module.zero_grad(set_to_none=True)
        self.done += 1
