"""GGUF metadata: values as this package passes them around, and a reader that trusts nothing in the file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from dflash_tools.errors import UserError
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from dflash_convert.tensors import FileReader

_SCALARS: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "u1",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class Value:
    """A metadata value with its GGUF type; `item` is the type of an array's items. Strings are bytes (UTF-8)."""

    type: GGUFValueType
    value: Any
    item: GGUFValueType | None = None


Metadata = dict[str, Value]


def u32(value: int) -> Value:
    return Value(GGUFValueType.UINT32, value)


def f32(value: float) -> Value:
    return Value(GGUFValueType.FLOAT32, value)


def flag(value: bool) -> Value:
    return Value(GGUFValueType.BOOL, value)


def text(value: str) -> Value:
    return Value(GGUFValueType.STRING, value.encode("utf-8", "replace"))


def i32_array(values: Sequence[int]) -> Value:
    return Value(GGUFValueType.ARRAY, list(values), GGUFValueType.INT32)


def flag_array(values: Sequence[bool]) -> Value:
    return Value(GGUFValueType.ARRAY, list(values), GGUFValueType.BOOL)


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a GGUF file: `shape` in NumPy order (GGUF's reversed), `offset` from the start of the file.

    A type newer than the gguf package is None: its size is unknown (`nbytes` 0), and it is never read.
    """

    shape: tuple[int, ...]
    type: GGMLQuantizationType | None
    offset: int
    nbytes: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a GGUF file to be copied as it is, of any type; `shape` as in TensorEntry."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    file: Path
    offset: int
    nbytes: int

    def read_bytes(self, start: int, stop: int) -> np.ndarray:
        return FileReader(self.file, self.offset, "U8")(start, stop)


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says about itself."""

    metadata: Metadata
    tensors: dict[str, TensorEntry]

    def integer(self, key: str) -> int | None:
        """An integer value, None if the key is absent or holds something else."""
        found = self.metadata.get(key)
        return found.value if found and isinstance(found.value, int) and not isinstance(found.value, bool) else None

    def string(self, key: str) -> str | None:
        found = self.metadata.get(key)
        return found.value.decode("utf-8", "replace") if found and isinstance(found.value, bytes) else None


def read_gguf(source: Path | bytes) -> GgufFile:
    """Metadata and tensor list of a GGUF file. Raises UserError if the file is damaged or not GGUF."""
    if isinstance(source, bytes):
        return _Parser(source, "GGUF").file()
    try:
        with source.open("rb") as f:
            if source.stat().st_size == 0:
                raise UserError(f"{source}: empty file")
            with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Parser(data, str(source)).file()
    except FileNotFoundError:
        raise UserError(f"{source}: not found") from None
    except (OSError, ValueError) as e:
        raise UserError(f"{source}: cannot be read: {e}") from e


class _Parser:
    """Reads forward through `data`, never past its end; a count that lies ends there too."""

    def __init__(self, data: bytes | mmap.mmap, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    def file(self) -> GgufFile:
        if self.take(4) != b"GGUF":
            raise UserError(f"{self.where}: not a GGUF file")
        version = self.number("<I")
        if version not in (2, 3):
            raise UserError(f"{self.where}: GGUF version {version}; 2 and 3 (little-endian) are read")
        n_tensors, n_keys = self.number("<Q"), self.number("<Q")
        metadata: Metadata = {}
        for _ in range(n_keys):
            key = self.string().decode("utf-8", "replace")
            if key in metadata:
                raise UserError(f"{self.where}: the key {key[:80]!r} stands twice")
            metadata[key] = self.value()
        infos: dict[str, TensorEntry] = {}
        for _ in range(n_tensors):
            name, entry = self.tensor()
            if name in infos:
                raise UserError(f"{self.where}: the tensor {name[:80]!r} stands twice")
            infos[name] = entry
        alignment = metadata.get("general.alignment", u32(_DEFAULT_ALIGNMENT)).value
        if not isinstance(alignment, int) or alignment <= 0 or alignment % 8 or alignment > 1 << 20:
            raise UserError(f"{self.where}: general.alignment is {alignment!r}")
        start = -(-self.at // alignment) * alignment
        tensors = {n: replace(e, offset=start + e.offset) for n, e in infos.items()}
        for name, entry in tensors.items():
            if entry.offset + entry.nbytes > len(self.data):
                raise UserError(
                    f"{self.where}: truncated: {name[:80]} ends at byte {entry.offset + entry.nbytes}, the file has "
                    f"{len(self.data)}. Download it again."
                )
        return GgufFile(metadata, tensors)

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise UserError(f"{self.where}: truncated: {n} bytes wanted at {self.at}, the file has {len(self.data)}")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, fmt: str) -> int:
        return struct.unpack(fmt, self.take(struct.calcsize(fmt)))[0]

    def string(self) -> bytes:
        return self.take(self.number("<Q"))

    def kind(self) -> GGUFValueType:
        number = self.number("<I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise UserError(f"{self.where}: damaged: value type {number} at {self.at} is unknown") from None

    def value(self) -> Value:
        kind = self.kind()
        if kind is GGUFValueType.STRING:
            return Value(kind, self.string())
        if kind is not GGUFValueType.ARRAY:
            return Value(kind, self.scalars(kind, 1)[0])
        item = self.kind()
        n = self.number("<Q")
        if item is GGUFValueType.STRING:
            return Value(kind, [self.string() for _ in range(n)], item)
        if item is GGUFValueType.ARRAY:
            raise UserError(f"{self.where}: arrays of arrays are not read")
        return Value(kind, self.scalars(item, n), item)

    def scalars(self, kind: GGUFValueType, n: int) -> list[Any]:
        dtype = np.dtype(_SCALARS[kind])
        values = np.frombuffer(self.take(n * dtype.itemsize), dtype=dtype)
        return (values != 0).tolist() if kind is GGUFValueType.BOOL else values.tolist()

    def tensor(self) -> tuple[str, TensorEntry]:
        """A tensor's name and description; its offset is still that from the start of the data."""
        name = self.string().decode("utf-8", "replace")
        n_dims = self.number("<I")
        if n_dims > 4:
            raise UserError(f"{self.where}: damaged: tensor {name[:80]!r} has {n_dims} dimensions")
        shape = tuple(self.number("<Q") for _ in range(n_dims))[::-1]
        number, offset = self.number("<I"), self.number("<Q")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            return name, TensorEntry(shape, None, offset, 0)
        block, size = GGML_QUANT_SIZES[kind]
        if shape and shape[-1] % block:
            raise UserError(
                f"{self.where}: damaged: tensor {name[:80]!r} of type {kind.name} has rows of {shape[-1]} numbers; "
                f"that type stores {block} at a time"
            )
        return name, TensorEntry(shape, kind, offset, math.prod(shape) // block * size)
