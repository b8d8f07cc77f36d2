"""Rows of a tensor in the type they are written in, checked for numbers that no weight may be."""

from __future__ import annotations

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
    """`rows` (as stored, [n, columns]) as the bytes of `kind`.

    `first` is the number of the first element, for the message. Raises UserError for NaN and infinity, and for numbers
    that do not fit into `kind`.
    """
    _check_finite(rows, source, first)
    if (source.dtype, kind) in _SAME:
        return rows
    with np.errstate(over="ignore"):
        values = as_float32(rows, source.dtype)
        if kind is T.F16:
            out = values.astype(np.float16)
            finite = _all_finite(out, "F16")
        else:
            out = gguf.quants.quantize(values, kind)
            finite = kind is T.F32 or _all_finite(_scales(out, kind), "BF16" if kind is T.BF16 else "F16")
            finite = finite and _all_finite(values, "F32")
    if not finite:
        largest = np.abs(values if source.dtype == "BF16" else rows).max()
        raise UserError(
            f"{source.file}: {source.name} holds numbers up to {largest:.4g}, too large for {kind.name}. "
            "Use --outtype bf16."
        )
    return out


def _scales(out: np.ndarray, kind: T) -> np.ndarray:
    """What can overflow in `out`: the numbers themselves, or the float16 scale that heads each block of Q8_0."""
    if kind is not T.Q8_0:
        return out.view(np.uint16)
    return np.ascontiguousarray(out.reshape(-1, 34)[:, :2]).view(np.uint16)


def _all_finite(values: np.ndarray, dtype: str) -> bool:
    if dtype == "F64":
        return bool(np.isfinite(values).all())
    mask, infinite = _INFINITE[dtype]
    return values.size == 0 or bool((values.view(mask.dtype) & mask).max() < infinite)


def _check_finite(rows: np.ndarray, source: LazyTensor, first: int) -> None:
    if _all_finite(rows, source.dtype):
        return
    values = (rows if source.dtype == "F64" else as_float32(rows, source.dtype)).reshape(-1)
    at = int(np.flatnonzero(~np.isfinite(values))[0])
    raise UserError(
        f"{source.file}: {source.name} holds {values[at]} (element {first + at} of {source.size}); weights must be "
        "finite numbers. The checkpoint is damaged: download it again or ask its authors."
    )
