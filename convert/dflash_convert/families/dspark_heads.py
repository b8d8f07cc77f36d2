"""What DSpark adds to the DFlash backbone: the Markov head, the confidence head, and the slot that drafting starts at.

    bias of slot k    = W2 W1[t],  t: the token before the one that slot k predicts   added to the logits of the slot
    confidence of k   = sigmoid(w . [hidden of k ; W1[t]] + b), or of the hidden state alone

Anchor-first, slot k predicts the token after its own position, so all B slots draft; with a bonus anchor slot k
predicts the token at its position and slot 0 nothing, as in DFlash. llama.cpp reads blocks anchor-first only of
drafters with a Markov head, so a drafter without one gets one of rank 1 that is all zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from dflash_tools.errors import UserError

from dflash_convert.drafter import OutTensor
from dflash_convert.families.backbone import Places
from dflash_convert.families.common import weight
from dflash_convert.gguf_file import Metadata, flag
from dflash_convert.tensors import LazyTensor

W1, W2 = "markov_head.markov_w1.weight", "markov_head.markov_w2.weight"
CONFIDENCE, CONFIDENCE_BIAS = "confidence_head.proj.weight", "confidence_head.proj.bias"
_GGUF_NAMES = {
    W1: "markov_w1.weight",
    W2: "markov_w2.weight",
    CONFIDENCE: "conf_proj.weight",
    CONFIDENCE_BIAS: "conf_proj.bias",
}
_OTHER_HEADS = {"markov_head.gate_proj.": "gated", "markov_head.joint_proj.": "rnn"}
MAX_RANK = 1 << 16


@dataclass(frozen=True)
class Heads:
    """rank: of the Markov head, 0 for none; confidence: width of the confidence head's input, None without one.

    hidden, vocab, draft_vocab: the drafter's; anchor_first: whether slot 0 drafts.
    """

    rank: int
    confidence: int | None
    anchor_first: bool
    hidden: int
    vocab: int
    draft_vocab: int

    def required(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that must be there."""
        found: dict[str, tuple[int, ...]] = {}
        if self.rank:
            found |= {W1: (self.vocab, self.rank), W2: (self.draft_vocab, self.rank)}
        if self.confidence:
            found[CONFIDENCE] = (1, self.confidence)
        return found

    def optional(self) -> dict[str, tuple[int, ...]]:
        return {CONFIDENCE_BIAS: (1,)} if self.confidence else {}

    def keys(self) -> Metadata:
        """GGUF keys without the architecture's prefix."""
        return {
            "sample_from_anchor": flag(self.anchor_first),
            "has_confidence_head": flag(self.confidence is not None),
        }

    @property
    def stands_in(self) -> bool:
        """Whether a Markov head of zeros is written, without which llama.cpp would take the drafter for a DFlash."""
        return self.rank == 0 and (self.anchor_first or self.confidence is not None)

    def tensors(self, tensors: Mapping[str, LazyTensor]) -> list[OutTensor]:
        """The heads under llama.cpp's names."""
        found = [weight(tensors[n], gguf_name) for n, gguf_name in _GGUF_NAMES.items() if n in tensors]
        return found + (empty_markov_head(self.vocab, self.draft_vocab) if self.stands_in else [])

    def notes(self) -> list[str]:
        """What the user should know of what was read and written."""
        said = ["every slot of a block drafts" if self.anchor_first else "all slots of a block but the anchor's draft"]
        if self.stands_in:
            said.append("no Markov head: one of zeros is written, by which llama.cpp knows that the first slot drafts")
        if self.confidence == self.hidden:
            said.append(
                "the confidence head reads the hidden state alone: the fork loads it, upstream's llama.cpp does not yet"
            )
        return said


def read_heads(
    own: Places, tensors: Mapping[str, LazyTensor], *, anchor_first: bool, default_rank: int, hidden: int, vocab: int,
    draft_vocab: int,
) -> Heads:  # fmt: skip
    """Sizes of the heads; `default_rank` is that of a config which states none and weights which have no head.

    `anchor_first` holds if `sample_from_anchor` is not there. Raises UserError for heads that llama.cpp cannot run.
    """
    rank = own.of("markov_rank").optional_integer("markov_rank", most=MAX_RANK)
    if rank is None:
        w1 = tensors.get(W1)
        rank = w1.shape[1] if w1 is not None and len(w1.shape) == 2 else default_rank
    place = own.of("markov_head_type")
    kind = place.string("markov_head_type", "vanilla").lower()
    other = next((k for start, k in _OTHER_HEADS.items() if any(n.startswith(start) for n in tensors)), None)
    if other or (rank and kind != "vanilla"):
        raise UserError(
            f"{place.where('markov_head_type')} is {kind!r}{f', the weights are of a {other} head' if other else ''}: "
            "llama.cpp runs vanilla Markov heads only, whose bias depends on the token before and nothing else"
        )
    return Heads(
        rank=rank,
        confidence=_confidence_width(own, tensors, rank, hidden),
        anchor_first=own.of("sample_from_anchor").flag("sample_from_anchor", anchor_first),
        hidden=hidden,
        vocab=vocab,
        draft_vocab=draft_vocab,
    )


def empty_markov_head(vocab: int, draft_vocab: int) -> list[OutTensor]:
    """A Markov head of rank 1 that adds nothing."""
    return [
        OutTensor(_GGUF_NAMES[W1], np.zeros((vocab, 1), dtype=np.float32)),
        OutTensor(_GGUF_NAMES[W2], np.zeros((draft_vocab, 1), dtype=np.float32)),
    ]


def _confidence_width(own: Places, tensors: Mapping[str, LazyTensor], rank: int, hidden: int) -> int | None:
    """As stated, else as stored: with or without the Markov embedding of the token before."""
    head = tensors.get(CONFIDENCE)
    place = own.of("enable_confidence_head")
    if head is None and not place.flag("enable_confidence_head", False):
        return None
    place = own.of("confidence_head_with_markov")
    if place.has("confidence_head_with_markov"):
        with_markov = place.flag("confidence_head_with_markov", False)
    else:
        with_markov = head is None or head.shape != (1, hidden)
    if with_markov and not rank:
        raise UserError(
            f"{place.where('confidence_head_with_markov')}: the confidence head reads the Markov embedding, but "
            "markov_rank is 0, so that there is none"
        )
    return hidden + (rank if with_markov else 0)
