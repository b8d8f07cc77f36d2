"""The description that every checkpoint family is read into, and the only thing the writer knows of a drafter."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dflash_convert.gguf_file import Metadata, StoredTensor
from dflash_convert.rope import Rope
from dflash_convert.tensors import LazyTensor


@dataclass(frozen=True)
class OutTensor:
    """One tensor of the output.

    `source` is a tensor of a checkpoint, a tensor of a GGUF file (copied byte for byte), or an array made during
    conversion (written as float32 or int64 as it is).
    `row_order` permutes rows within consecutive groups of its length: out[g * n + i] = in[g * n + row_order[i]]. For a
    vector, the elements are permuted instead. That is how rotary layouts differ, head by head.
    """

    name: str
    source: LazyTensor | StoredTensor | np.ndarray
    row_order: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)


@dataclass
class Drafter:
    """A drafter in llama.cpp's terms.

    family: for messages ("DFlash"); arch: `general.architecture`, the prefix of its keys; switch: the llama-server flag
    head_dim_stated: the config (or its model type's default) gives head_dim, so it is written
    taps: layers of the target whose *input* is read, in the order of the column blocks of `fc`
    tap_ids: the layers as the file names them, inputs or outputs; empty if it names none
    target_hidden_size: width of one tap
    mask_token_id: the token of the slots to fill (None for families without)
    block_size: tokens of one block, anchor included (None for families without)
    extra: keys of the family, without the architecture's prefix
    notes / warnings: for the user
    """

    family: str
    arch: str
    switch: str
    block_count: int
    hidden_size: int
    target_hidden_size: int
    feed_forward_size: int
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_stated: bool
    rms_eps: float
    vocab_size: int
    context_length: int | None
    rope: Rope
    taps: tuple[int, ...]
    tensors: list[OutTensor]
    mask_token_id: int | None = None
    block_size: int | None = None
    draft_vocab_size: int | None = None
    tap_ids: tuple[int, ...] = ()
    extra: Metadata = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
