"""A mask token's embedding that a drafter brings in `mask_embedding.pt`, and its place in an embedding table.

The target never saw the token, so the drafter's row takes the place of the target's. llama.cpp's drafter then reads a
table of its own, a copy of the target's with that row, and a head of its own, the target's unchanged. A table has as
many rows as the target has tokens: a mask token beyond them takes the row of the target's end-of-text token, after
which nothing is drafted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dflash_tools.errors import UserError
from gguf import GGMLQuantizationType as T

from dflash_convert.check import shape_text
from dflash_convert.drafter import Drafter
from dflash_convert.jsonfile import read_json_object
from dflash_convert.quantize import encode_rows
from dflash_convert.target import Target
from dflash_convert.tensors import FLOAT_TYPES, LazyTensor, as_float32
from dflash_convert.torch_bin import lazy_tensor, load_weights_only

FILE = "mask_embedding.pt"
_ROWS = ("embedding", "mask_embedding")


@dataclass(frozen=True)
class MaskRow:
    """`row` [H] as stored; `token`: the id that the file says it is for, if it says one."""

    row: LazyTensor
    token: int | None

    def in_table(self, table: LazyTensor, token: int) -> LazyTensor:
        """`table` [V, H] with this row as that of `token`, in the table's own type."""
        width = table.row_size
        first, end = token * width, (token + 1) * width
        values = _in_type_of(table, self.row)

        def read_flat(start: int, stop: int) -> np.ndarray:
            out = table.read_flat(start, stop)
            low, high = max(start, first), min(stop, end)
            if low < high:
                out = np.array(out)  # what was read may be a view of a file
                out[low - start : high - start] = values[low - first : high - first]
            return out

        return LazyTensor(table.name, table.dtype, table.shape, table.file, read_flat)


def read_mask_row(directory: Path, hidden: int) -> MaskRow | None:
    """The row that a checkpoint brings, None if it brings none.

    MiMo stores {mask_token_id, embedding}, others {mask_embedding} or the tensor itself. Raises UserError if the file
    holds anything else, or a row of another width than `hidden`.
    """
    path = directory / FILE
    if not path.exists():
        return None
    found = load_weights_only(path)
    entries: Mapping[Any, Any] = found if isinstance(found, dict) else {_ROWS[0]: found}
    name = next((n for n in _ROWS if n in entries), next(iter(entries)) if len(entries) == 1 else None)
    if name is None:
        named = ", ".join(sorted(str(n)[:40] for n in entries)[:6]) or "nothing"
        raise UserError(f"{path}: holds {named}; an entry {' or '.join(_ROWS)} is expected")
    row = lazy_tensor(path, str(name), entries[name])
    if row.dtype not in FLOAT_TYPES or row.size != hidden or row.row_size != hidden:
        raise UserError(
            f"{path}: {name} is {row.dtype} {shape_text(row.shape)}; a row of {hidden} floating-point numbers is "
            "expected"
        )
    token = entries.get("mask_token_id")
    if token is not None and (isinstance(token, bool) or not isinstance(token, int)):
        try:
            token = int(token)  # a tensor of one number
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"{path}: mask_token_id is a {type(token).__name__}; a whole number is expected") from None
    return MaskRow(row, token)


def settle_mask_token(drafter: Drafter, row: MaskRow | None, where: str, target: Target, own_vocabulary: bool) -> None:
    """Give a mask token beyond the drafter's vocabulary an id of the target's, if there is one.

    `where` names the key in messages. `own_vocabulary`: tensors of the checkpoint have a row for each token, so that
    its vocabulary is what they have. Raises UserError if there is no row for the token, or the row is another token's.
    """
    token, vocab = drafter.mask_token_id, drafter.vocab_size
    if token is None:
        return
    if row is not None and row.token not in (None, token):
        raise UserError(f"{row.row.file}: mask_token_id is {row.token}, {where} is {token}: which one is the mask?")
    if token < vocab:
        return
    if not own_vocabulary and target.vocab_size is not None and token < target.vocab_size:
        drafter.vocab_size = target.vocab_size
        drafter.notes.append(
            f"the mask token {token} is none of the config's {vocab} tokens, but one of the target's "
            f"{target.vocab_size}"
        )
        return
    if row is None:
        raise UserError(
            f"{where} is {token}; the vocabulary has the ids 0 to {vocab - 1}, and no {FILE} brings a row for the token"
        )
    end = _end_of_text(target)
    if end is None or not 0 <= end < vocab:
        raise UserError(
            f"{where} is {token}, beyond the {vocab} rows that llama.cpp's tables have for this target, and "
            f"{target.path} names no end-of-text token (eos_token_id) whose row could be used instead"
        )
    drafter.mask_token_id = end
    drafter.notes.append(
        f"the mask token {token} is beyond the target's {vocab} tokens: its row takes the place of the end-of-text "
        f"token ({end}) in the drafter's embeddings, after which nothing is drafted"
    )


def _end_of_text(target: Target) -> int | None:
    if target.gguf is not None:
        return target.gguf.integer("tokenizer.ggml.eos_token_id")
    config = read_json_object(target.path / "config.json")
    text = config.get("text_config")
    for place in (text if isinstance(text, dict) else {}, config):
        found = place.get("eos_token_id")
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, int) and not isinstance(found, bool):
            return found
    return None


def _in_type_of(table: LazyTensor, row: LazyTensor) -> np.ndarray:
    """The numbers of `row` as `table` stores its own. Raises UserError if they are not finite or do not fit."""
    values = row.read_rows(0, 1)
    if table.dtype == "F64":
        return as_float32(values, row.dtype).astype(np.float64).reshape(-1)
    return encode_rows(values, row, 0, T[table.dtype]).reshape(-1).copy()
