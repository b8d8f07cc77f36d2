"""How far the drafter in llama.cpp is from a reference drafter, over the blocks of probed runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from probe_run import Job, Round
from reference_dflash import DFlash
from reference_dflash2 import DFlash2
from reference_dspark import DSpark
from reference_eagle3 import Eagle3
from reference_target import Run, Target

# float32 with sums in another order. Measured on the trained pairs at most 2.5e-5 of a probability, 2.6e-4 of a logit.
# One wrong feature among 600 (EAGLE3, at the border of two batches) gave 6.9e-3 of a logit; what is wrong everywhere
# gives more than 0.2 of a probability.
TOLERANCE = 2e-4
LOGIT_TOLERANCE = 1e-3
# Two candidates whose reference logits are closer than both errors together may change places.
TIE = 2 * LOGIT_TOLERANCE


@dataclass
class Gap:
    """Fork against reference over some blocks."""

    blocks: int = 0
    slots: int = 0
    same_top: int = 0
    same_draft: int = 0
    probability: float = 0.0
    logit: float = 0.0
    distinct: int = 0
    confidence: float = 0.0
    confidences: int = 0
    differences: list[str] = field(default_factory=list)

    def add(
        self, round_: Round, got: torch.Tensor, want: torch.Tensor, scores: torch.Tensor | None = None
    ) -> None:
        """got and want [slots, V]: logits of the drafted slots; scores: what the draft is chosen by, if not logits."""
        possible = want.isfinite()
        assert torch.equal(possible, got.isfinite()), "the draft vocabularies differ"
        self.blocks += 1
        self.slots += len(want)
        gap = (got.softmax(-1) - want.softmax(-1)).abs().max().item()
        logit_gap = (got - want)[possible].abs().max().item()
        self.probability, self.logit = max(self.probability, gap), max(self.logit, logit_gap)
        best = want.argmax(-1)
        self.distinct += len(set(best.tolist()))
        margin = want.amax(-1) - want.gather(-1, got.argmax(-1, keepdim=True))[:, 0]
        self.same_top += int((margin <= TIE).sum())
        draft = torch.tensor(round_.draft)
        scores = want if scores is None else scores
        margin = scores.amax(-1) - scores.gather(-1, draft[:, None])[:, 0]
        self.same_draft += bool((margin <= TIE).all())
        if gap > TOLERANCE or logit_gap > LOGIT_TOLERANCE or (margin > TIE).any():
            wanted = best.tolist()
            self.differences.append(
                f"after {round_.n} tokens: {gap:.2g}, {logit_gap:.2g}, draft {round_.draft}, reference {wanted}"
            )

    def add_confidence(self, got: torch.Tensor, want: torch.Tensor) -> None:
        """got and want [slots]: how likely the drafter thinks each drafted token is kept."""
        self.confidences += len(want)
        self.confidence = max(self.confidence, (got - want).abs().max().item())

    def __str__(self) -> str:
        return (
            f"{self.blocks} blocks, max abs gap {self.probability:.2g} of a probability, {self.logit:.2g} of a logit, "
            f"top-1 {self.same_top}/{self.slots}, whole drafts {self.same_draft}/{self.blocks}, "
            f"{self.distinct / self.blocks:.1f} distinct tokens per block, {self.confidence:.2g} of a confidence"
        )

    def check(self, logit: float = LOGIT_TOLERANCE) -> None:
        """Fail, with every block that differs, unless all is equal within the tolerances."""
        report = f"{self}; allowed {TOLERANCE} and {logit}\n" + "\n".join(self.differences)
        assert self.probability <= TOLERANCE, report
        assert self.confidence <= logit, report
        assert self.logit <= logit, report
        assert self.same_top == self.slots, report
        assert self.same_draft == self.blocks, report


def compare(
    runs: Sequence[tuple[Job, Run]],
    model: DFlash | Eagle3,
    target: Target,
    spoil: Callable[[torch.Tensor], torch.Tensor] = lambda features: features,
    shift: int = 0,
) -> Gap:
    """Recompute every block of the probed jobs with the reference's features of the same texts.

    For wrong references: `shift` taps other layers, `spoil` changes the features [n, K * Ht].
    """
    gap = Gap()
    for job, run in runs:
        features = spoil(run.features([tap + shift for tap in model.taps_of(target.layer_count)]))
        with torch.inference_mode():
            ctx = model.context(features)
            for r in job.rounds:
                scores = None
                if isinstance(model, DFlash):
                    assert len(r.logits) == model.block_size, f"{len(r.logits)} rows of {model.block_size} were run"
                    states = model.states(ctx[: r.n], job.tokens[r.n], target.embeddings)
                    logits = model.logits(states, target.head)
                    if isinstance(model, (DFlash2, DSpark)):
                        scores = model.scores(states, logits, job.tokens[r.n], r.draft)
                    if isinstance(model, DSpark):
                        confidences = model.confidences(states, job.tokens[r.n], r.draft)
                        if confidences is not None:
                            gap.add_confidence(r.confidences[model.first_slot :], confidences)
                    want, got = logits[model.first_slot :], r.logits[model.first_slot :]
                else:
                    want = model.draft(ctx[: r.n], job.tokens[: r.n + 1], len(r.draft), target.embeddings, target.head)
                    got = r.logits
                gap.add(r, got, want, scores)
    return gap
