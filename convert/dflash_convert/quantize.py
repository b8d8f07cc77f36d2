"""Rows of a tensor in the type they are written in, checked for numbers that no weight may be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache

import gguf
import numpy as np
from dflash_tools.errors import UserError
from gguf import GGMLQuantizationType as T

from dflash_convert.tensors import LazyTensor, as_float32

# outtype -> (type of matrices, general.file_type)
OUTTYPES: dict[str, tuple[T, gguf.LlamaFileType]] = {
    "f32": (T.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (T.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (T.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (T.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
CHECK_ELEMENTS = 1 << 20
_SAME = {("BF16", T.BF16), ("F16", T.F16), ("F32", T.F32)}
# All bits but the sign, and what they are in an infinite number; NaN is above.
_INFINITE = {
    "BF16": (np.uint16(0x7FFF), 0x7F80),
    "F16": (np.uint16(0x7FFF), 0x7C00),
    "F32": (np.uint32(0x7FFFFFFF), 0x7F800000),
}


def tensor_type(name: str, shape: tuple[int, ...], matrix_type: T) -> T:
    """The type a tensor is written in: vectors and norms stay float32; rows that Q8_0 cannot cut are float16."""
    if len(shape) <= 1 or name.endswith("_norm.weight") or not name.endswith(".weight"):
        return T.F32
    block, _ = gguf.GGML_QUANT_SIZES[matrix_type]
    return T.F16 if shape[-1] % block else matrix_type


def encode_rows(rows: np.ndarray, source: LazyTensor, first: int, kind: T) -> np.ndarray:
    """`rows` (as stored, [n, columns]) as the bytes of `kind`, valid until this thread encodes again.

    `first` is the number of the first element, for the message. Raises UserError for NaN and infinity, and for numbers
    that do not fit into `kind`.
    """
    _check_finite(rows, source, first)
    if (source.dtype, kind) in _SAME:
        return rows
    with np.errstate(over="ignore"):
        if source.dtype == "BF16" and kind is T.F16:
            out = _scratch("f16", np.float16, rows.size)
            _bf16_in_f16().take(rows.reshape(-1), mode="clip", out=out)
            finite = _all_finite(out, "F16")
        else:
            values = _bf16_as_float32(rows) if source.dtype == "BF16" else as_float32(rows, source.dtype)
            out = _ENCODERS[kind](values)
            # what can overflow: the numbers themselves, or the float16 scale of a block
            finite = (source.dtype != "F64" or _all_finite(values, "F32")) and _all_finite(*_EXPOSED[kind](out))
    if not finite:
        largest = np.abs(as_float32(rows, "BF16") if source.dtype == "BF16" else rows).max()
        raise UserError(
            f"{source.file}: {source.name} holds numbers up to {largest:.4g}, too large for {kind.name}. "
            "Use --outtype bf16."
        )
    return out


_of_thread = threading.local()


def _scratch(name: str, dtype: type[np.generic], n: int) -> np.ndarray:
    """`n` items of memory that this thread has used before: half of the time went into pages given back and taken."""
    held: np.ndarray | None = getattr(_of_thread, name, None)
    if held is None or len(held) < n:
        held = np.empty(n, dtype)
        setattr(_of_thread, name, held)
    return held[:n]


def _bf16_as_float32(rows: np.ndarray) -> np.ndarray:
    bits = _scratch("values", np.uint32, rows.size).reshape(rows.shape)
    np.copyto(bits, rows)
    return np.left_shift(bits, np.uint32(16), out=bits).view(np.float32)


@cache
def _bf16_in_f16() -> np.ndarray:
    """Every bfloat16 (by its bits) as float16; several times as fast as converting."""
    return as_float32(np.arange(1 << 16, dtype=np.uint16), "BF16").astype(np.float16)


def _to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 -> bits of bfloat16, to nearest even; for finite numbers, so that adding cannot overflow."""
    bits = values.view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def _to_q8_0(values: np.ndarray) -> np.ndarray:
    """float32 rows -> blocks of 34 bytes: per 32 numbers a float16 scale d = max/127, then round(x / d) as int8.

    The bits are those of ggml and gguf.quants. Rounding is ggml's (`roundf`: halves away from zero): truncating after
    adding the number below 0.5 with the sign of x; 0.5 itself would lift the number below a half to one. Each line is
    one pass over long rows: what NumPy does in steps of 32 numbers takes three times as long.
    """
    n = values.size
    bits = values.reshape(-1).view(np.uint32)
    d = _largest_of_32(bits) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(d == 0, np.float32(0), np.float32(1) / d)
        scaled = _scratch("scaled", np.float32, n)
        np.multiply(values.reshape(-1, 32), inverse[:, None], out=scaled.reshape(-1, 32))
        half = np.bitwise_and(bits, np.uint32(1 << 31), out=_scratch("half", np.uint32, n))
        np.bitwise_or(half, _BELOW_HALF, out=half)
        np.add(scaled, half.view(np.float32), out=scaled)
        whole = _scratch("whole", np.int8, n)
        np.copyto(whole, scaled, casting="unsafe")
        out = _scratch("q8_0", np.uint8, n // 32 * 34).view(_Q8_0)
        out["d"] = d
    out["q"] = whole.view("V32")
    return out


def _largest_of_32(bits: np.ndarray) -> np.ndarray:
    """The largest magnitude of every 32 float32 numbers, given by their bits: without the sign those order alike."""
    ahead = np.bitwise_and(bits, np.uint32(0x7FFFFFFF), out=_scratch("half", np.uint32, len(bits)))
    other = _scratch("scaled", np.float32, len(bits)).view(np.uint32)
    for step in (1, 2, 4, 8, 16):
        n = len(ahead) - step
        ahead, other = np.maximum(ahead[:n], ahead[step:], out=other[:n]), ahead
    return ahead[::32].view(np.float32)


_Q8_0 = np.dtype([("d", "<f2"), ("q", "V32")])
_BELOW_HALF = np.float32(0.49999997).view(np.uint32)
_ENCODERS: dict[T, Callable[[np.ndarray], np.ndarray]] = {
    T.F32: lambda values: values,
    T.F16: lambda values: values.astype(np.float16),
    T.BF16: _to_bf16,
    T.Q8_0: _to_q8_0,
}
_EXPOSED: dict[T, Callable[[np.ndarray], tuple[np.ndarray, str]]] = {
    T.F32: lambda out: (out, "F32"),
    T.F16: lambda out: (out, "F16"),
    T.BF16: lambda out: (out, "BF16"),
    T.Q8_0: lambda out: (np.ascontiguousarray(out["d"]), "F16"),
}


def _all_finite(values: np.ndarray, dtype: str) -> bool:
    if dtype == "F64":
        return bool(np.isfinite(values).all())
    mask, infinite = _INFINITE[dtype]
    return values.size == 0 or bool((values.view(mask.dtype) & mask).max() < infinite)


def check_finite(tensor: LazyTensor) -> None:
    """Read all of a tensor of floats. Raises UserError as `encode_rows` does for NaN and infinity."""
    for start in range(0, tensor.size, CHECK_ELEMENTS):
        _check_finite(tensor.read_flat(start, min(start + CHECK_ELEMENTS, tensor.size)), tensor, start)


def _check_finite(rows: np.ndarray, source: LazyTensor, first: int) -> None:
    if _all_finite(rows, source.dtype):
        return
    values = (rows if source.dtype == "F64" else as_float32(rows, source.dtype)).reshape(-1)
    at = int(np.flatnonzero(~np.isfinite(values))[0])
    raise UserError(
        f"{source.file}: {source.name} holds {values[at]} (element {first + at} of {source.size}); weights must be "
        "finite numbers. The checkpoint is damaged: download it again or ask its authors."
    )
