"""The memory floor: the bytes a step must move, and the time that takes at the bandwidth a copy reaches.

No step runs faster than its weights, its KV cells and its recurrent states can be read (and the states written back).
Activations and the rows of the embedding are left out: they are small and may stay in caches. A prompt is bound by
arithmetic long before it is bound by memory; its floor is there to compare like with like.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from dflash_tools.bench.shapes import Attention, Drafter, Shape
from dflash_tools.bench.synth import Model, nbytes
from dflash_tools.errors import UserError

_INJECT = re.compile(r"^(fc|blk\.\d+\.attn_[kv])\.weight$")


@dataclass(frozen=True)
class Load:
    """What a step works on: rows in all, tokens of context each sequence has, sequences, type of the KV cells."""

    rows: int = 1
    context: int = 0
    slots: int = 1
    kv: str = "f16"


def target_bytes(shape: Shape, model: Model, load: Load) -> float:
    """Bytes one step of the target must move.

    Of the experts those that at least one row chooses, when the rows choose independently: with `used` of `count` for
    each of n rows that is `count * (1 - (1 - used/count)^n)` on average.
    """
    share = 1.0
    if e := shape.experts:
        share = 1.0 - (1.0 - e.used / e.count) ** load.rows
    weights = sum(
        nbytes(tensor, kind) * (share if "_exps." in tensor.name else 1.0)
        for tensor, kind in model.tensors
        if shape.tied or tensor.name != "token_embd.weight"
    )
    return weights + load.slots * (_target_cells(shape, load) + _states(shape))


def round_bytes(shape: Shape, target: Model, drafter: Model, load: Load) -> float:
    """Bytes of one round: a verify of `load.rows` rows, and a draft, which reads the target's head once more."""
    draft = drafter.weights + _head_bytes(target) + load.slots * _drafter_cells(shape.drafter, load)
    return target_bytes(shape, target, load) + draft


def prefill_bytes(shape: Shape, target: Model, drafter: Model | None, load: Load, micro_batch: int) -> float:
    """Bytes of a prompt of `load.context` tokens, read in micro-batches: each is a step of the target, over the cells
    of all before it; only the last goes through the head. A drafter takes the target's features in as well: through
    `fc` and the keys and values of its layers.
    """
    starts = range(0, load.context, micro_batch)
    steps = [replace(load, rows=min(micro_batch, load.context - done), context=done) for done in starts]
    inject = 0.0 if drafter is None else sum(nbytes(t, kind) for t, kind in drafter.tensors if _INJECT.search(t.name))
    heads = (len(steps) - 1) * _head_bytes(target)
    return sum(target_bytes(shape, target, step) + inject for step in steps) - heads


def floor_ms(moved: float, copy_rate: float) -> float:
    """Milliseconds for so many bytes at so many GB/s (1e9 bytes, read and written ones both counted)."""
    return moved / copy_rate / 1e6


def _head_bytes(target: Model) -> float:
    return target.bytes_of("output.weight") or target.bytes_of("token_embd.weight")


def _target_cells(shape: Shape, load: Load) -> float:
    layers = [i for i in range(shape.layers) if shape.attends(i)]
    cell = _cell(shape.attention, load.kv)
    # with a window, it is that of the even layers
    window = shape.attention.window
    return sum(cell * (min(load.context, window) if window and i % 2 == 0 else load.context) for i in layers)


def _drafter_cells(d: Drafter, load: Load) -> float:
    cell = _cell(d.attention, load.kv)
    near = min(load.context, d.window) if d.window else load.context
    return cell * (d.windowed_layers * near + (d.layers - d.windowed_layers) * load.context)


def _cell(a: Attention, kv: str) -> float:
    """Bytes of K and V of one token in one layer. Raises UserError for a type ggml does not have."""
    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kv.upper()]]
    except KeyError:
        raise UserError(f"{kv!r} is no type of KV cells; f16, q8_0 and q4_0 are usual") from None
    return 2 * a.kv_heads * a.head_dim * size / block


def _states(shape: Shape) -> float:
    """Bytes of the recurrent states of one sequence, read and written."""
    if not (d := shape.delta):
        return 0.0
    one = d.value_heads * d.head_dim * d.head_dim + (d.conv - 1) * d.conv_width
    return 2.0 * 4 * one * (shape.layers - shape.attending)
