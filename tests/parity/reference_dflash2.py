"""DFlash2, straight from its formula: DFlash with convolutions in each layer and a selector over the best tokens.

convolution, one for attention and one for the MLP, over the block's own rows (rows before it are 0):
    dyn     = Wp h                    [B, 2, taps, H / G], from the sublayer's normed input
    in[t]   = sum_j (base[0, j] + spread(dyn[t, 0, j])) * h[t - j]         before the sublayer
    out[t]  = sum_j (base[1, j] + spread(dyn[t, 1, j])) * y[t - j]         after it
selector, slot by slot, prev = the token drafted before (the anchor at first):
    score[m] = logits[m] + <P[prev] * (Ws h), S[m]>      over the k best tokens m of the slot
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from reference_dflash import DFlash
from reference_math import Tensor


@dataclass
class DFlash2(DFlash):
    """A DFlash2 checkpoint in any layout."""

    def convolve(self, h: Tensor, w: dict[str, Tensor], prefix: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        base, group = w[f"{prefix}base_kernel"], self.of("conv_group_size")
        taps = base.shape[1]
        dynamic = (h @ w[f"{prefix}kernel_projection.weight"].T).unflatten(-1, (2, taps, -1))
        kernel = base + dynamic.repeat_interleave(group, -1)  # [B, 2, taps, H]

        def apply(rows: Tensor, side: int) -> Tensor:
            shifted = [torch.cat([torch.zeros(j, rows.shape[1]), rows])[: len(rows)] for j in range(taps)]
            return sum(kernel[:, side, j] * shifted[j] for j in range(taps))

        return apply(h, 0), lambda y: apply(y, 1)

    def scores(self, states: Tensor, logits: Tensor, anchor: int, draft: Sequence[int]) -> Tensor:
        """Scores [B - 1, V] of the slots after the anchor, each after the tokens drafted before it; -inf for others."""
        w, k = self.weights, self.of("selector_top_k")
        before = torch.tensor([anchor, *draft[:-1]])
        context = w["candidate_selector.predecessor_codebook"][before]
        context = context * (states[1 : len(draft) + 1] @ w["candidate_selector.hidden_projection.weight"].T)
        full = logits[1 : len(draft) + 1] + context @ w["candidate_selector.successor_codebook"].T
        best = logits[1 : len(draft) + 1].topk(k).indices
        return torch.full_like(full, -torch.inf).scatter(1, best, full.gather(1, best))
