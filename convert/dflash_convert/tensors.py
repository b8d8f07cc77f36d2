"""Tensors that stay on disk: a name, a type, a shape, and rows read on demand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dflash_tools.errors import UserError

# Element types by their safetensors names. bfloat16 has no NumPy type: its bits are read as uint16.
NUMPY_TYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
}
FLOAT_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
INT_TYPES = frozenset({"I64", "I32"})


@dataclass(frozen=True)
class LazyTensor:
    """One tensor of a checkpoint. `read_flat(start, stop)` gives elements of the flattened tensor, as stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    read_flat: Callable[[int, int], np.ndarray]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * NUMPY_TYPES[self.dtype].itemsize

    @property
    def row_size(self) -> int:
        """Elements in one row (the last dimension); a vector is one row."""
        return self.shape[-1] if self.shape else 1

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of the tensor seen as a matrix of `row_size` columns, as stored."""
        return self.read_flat(start * self.row_size, stop * self.row_size).reshape(stop - start, self.row_size)


class FileReader:
    """Elements of one region of a file, by positioned reads: no mapping, so memory stays what the caller holds."""

    def __init__(self, file: Path, offset: int, dtype: str) -> None:
        self.file, self.offset, self.type = file, offset, NUMPY_TYPES[dtype]

    def __call__(self, start: int, stop: int) -> np.ndarray:
        out = np.empty(stop - start, dtype=self.type)
        try:
            with self.file.open("rb", buffering=0) as f:
                f.seek(self.offset + start * self.type.itemsize)
                view = memoryview(out).cast("B")
                done = 0
                while done < len(view):
                    n = f.readinto(view[done:])
                    if not n:
                        raise UserError(f"{self.file}: ends early; was it changed while it was read?")
                    done += n
        except OSError as e:
            raise UserError(f"{self.file}: cannot be read: {e.strerror}") from e
        return out


def as_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Stored values of a float type as float32 (a new array, or `values` itself if it is float32 already)."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)
