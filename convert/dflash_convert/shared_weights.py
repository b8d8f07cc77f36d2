"""A drafter's own copies of its target's embeddings and head: drop them if identical, keep them if not.

llama.cpp takes both from the target when the drafter's file has neither. A lone `token_embd` would also become the
head, so it is never written; a lone `output` is fine.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from dflash_tools.errors import UserError

from dflash_convert.check import shape_text
from dflash_convert.checkpoint import Checkpoint
from dflash_convert.drafter import Drafter, OutTensor
from dflash_convert.families.common import weight
from dflash_convert.mask_row import MaskRow
from dflash_convert.target import Target
from dflash_convert.tensors import FLOAT_TYPES, LazyTensor, as_float32

_CHUNK = 4 << 20  # elements compared at a time


def choose_embedding_and_head(
    checkpoint: Checkpoint,
    drafter: Drafter,
    tensors: Mapping[str, LazyTensor],
    target: Target,
    mask: MaskRow | None = None,
) -> list[OutTensor]:
    """`token_embd` and `output` to write: none, both, or the head alone. Says in `drafter.notes` what was dropped.

    Copies are compared with the target's weights where those are at hand unquantised; otherwise they are kept, which is
    right in any case and only makes the file larger. With a row of its own for the mask token the drafter needs both.
    Raises UserError for embeddings without a head that are not known to be the target's, and for a mask's row without
    a table to put it into.
    """
    embedding, head = tensors.get("embed_tokens.weight"), tensors.get("lm_head.weight")
    if mask is not None:
        return _with_mask_row(drafter, mask, embedding, head, target)
    same_embedding = embedding is not None and same_numbers(embedding, target.embedding())
    same_head = head is not None and same_numbers(head, target.head())
    if same_embedding and same_head:
        drafter.notes.append("embeddings and head are the target's own: left out")
        return []
    if embedding is not None and head is None:
        if same_embedding:
            drafter.notes.append("embeddings are the target's own: left out")
            return []
        raise UserError(
            f"{embedding.file}: {embedding.name} without lm_head.weight: llama.cpp would use it as head too. It can be "
            f"left out only if it is the target's own, and either it differs from that of {target.path} or there are "
            "no unquantised weights there to compare with. Give the target's HF directory with its weights."
        )
    if same_head and embedding is None:
        drafter.notes.append("the head is the target's own: left out")
        return []
    found = []
    if same_embedding:
        drafter.notes.append("embeddings are the target's own: left out")
    elif embedding is not None:
        found.append(weight(embedding, "token_embd.weight"))
    if head is not None:
        found.append(weight(head, "output.weight"))
    if found:
        drafter.notes.append("the drafter brings " + " and ".join(t.name for t in found) + " of its own: kept")
    return found


def _with_mask_row(
    drafter: Drafter, mask: MaskRow, embedding: LazyTensor | None, head: LazyTensor | None, target: Target
) -> list[OutTensor]:
    """The table with the mask's row, and the head apart from it."""
    table = target.embedding() if embedding is None else embedding
    head = target.head() if head is None else head
    rows = (drafter.vocab_size, drafter.hidden_size)
    if table is None or head is None or drafter.mask_token_id is None or table.shape != rows:
        found = "has none here unquantised" if table is None or head is None else f"has {shape_text(table.shape)}"
        raise UserError(
            f"{mask.row.file}: the drafter's row for the mask token goes into a copy of the target's embeddings "
            f"{shape_text(rows)}, and the file needs the target's head as well; {target.path} {found}. Give the "
            "target's HF directory with its weights, or its GGUF in F16, BF16 or F32."
        )
    drafter.notes.append(
        "the drafter brings its own row for the mask token: copies of the target's embeddings, with that row, and of "
        "its head are written"
    )
    table = mask.in_table(table, drafter.mask_token_id)
    return [weight(table, "token_embd.weight"), weight(head, "output.weight")]


def same_numbers(tensor: LazyTensor, other: LazyTensor | None) -> bool:
    """Whether both hold the same numbers, whatever their float types."""
    if other is None or tensor.shape != other.shape or not {tensor.dtype, other.dtype} <= FLOAT_TYPES:
        return False
    for start in range(0, tensor.size, _CHUNK):
        stop = min(start + _CHUNK, tensor.size)
        a, b = tensor.read_flat(start, stop), other.read_flat(start, stop)
        if tensor.dtype != other.dtype:
            a, b = as_float32(a, tensor.dtype), as_float32(b, other.dtype)
        if not np.array_equal(a, b):
            return False
    return True
