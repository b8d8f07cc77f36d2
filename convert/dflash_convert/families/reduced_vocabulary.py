"""A drafter whose head knows a selection of its target's tokens: `lm_head` [Vd, H] and `d2t` [Vd].

Checkpoints store `d2t` as an offset (target id = draft id + d2t[draft id]); llama.cpp stores the target ids themselves.
`t2d` says the same once more and is not written.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from dflash_tools.errors import UserError

from dflash_convert.jsonfile import Config
from dflash_convert.tensors import INT_TYPES, LazyTensor

Shapes = dict[str, tuple[int, ...]]


def draft_vocab_size(config: Config, tensors: Mapping[str, LazyTensor], vocab: int) -> int:
    """Rows of the drafter's head: as stated, else as stored, else the target's vocabulary (`vocab`)."""
    size = config.optional_integer("draft_vocab_size", least=1) or _rows(tensors, "lm_head.weight") or vocab
    if size > vocab:
        raise UserError(f"{config.where('draft_vocab_size')} is {size}, more than the vocabulary's {vocab} tokens")
    return size


def reduced_shapes(draft_vocab: int, vocab: int, hidden: int) -> tuple[Shapes, Shapes]:
    """Shapes of the tensors that are required and of those that may be there, by name."""
    optional: Shapes = {"t2d": (vocab,)}
    required: Shapes = {}
    (required if draft_vocab < vocab else optional).update({
        "lm_head.weight": (draft_vocab, hidden),
        "d2t": (draft_vocab,),
    })  # fmt: skip
    return required, optional


def target_ids(d2t: LazyTensor, draft_vocab: int, vocab: int) -> np.ndarray:
    """Absolute target ids [draft_vocab], int64, from the offsets that checkpoints store.

    Raises UserError unless they are different ids below `vocab`.
    """
    if d2t.dtype not in INT_TYPES:
        raise UserError(f"{d2t.file}: d2t is stored as {d2t.dtype}; whole numbers (I64 or I32) are expected")
    offsets = d2t.read_flat(0, draft_vocab).astype(np.int64)
    # compared before adding, so that nothing overflows
    if offsets.min() < -draft_vocab or offsets.max() >= vocab:
        ids = None
    else:
        ids = offsets + np.arange(draft_vocab, dtype=np.int64)
    if ids is None or ids.min() < 0 or ids.max() >= vocab or len(np.unique(ids)) != draft_vocab:
        absolute = offsets.min() >= 0 and offsets.max() < vocab and bool((np.diff(offsets) > 0).all())
        raise UserError(
            f"{d2t.file}: d2t[i] + i must be {draft_vocab} different target ids below {vocab}, and is not"
            + (": it seems to hold the ids themselves, where offsets are expected" if absolute else "")
        )
    return ids


def _rows(tensors: Mapping[str, LazyTensor], name: str) -> int | None:
    tensor = tensors.get(name)
    return tensor.shape[0] if tensor is not None and tensor.shape and tensor.shape[0] > 0 else None
