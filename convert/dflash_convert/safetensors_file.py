"""Read the header of a safetensors file, trusting nothing in it.

Format: 8 bytes little-endian header length, the header (JSON: name -> dtype, shape, data_offsets relative to the end of
the header), then the data without holes. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dflash_tools.errors import UserError

from dflash_convert.jsonfile import parse_json_object
from dflash_convert.tensors import NUMPY_TYPES, FileReader, LazyTensor

MAX_HEADER_BYTES = 100_000_000


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of `path` by name, none of them loaded.

    Raises UserError if the file is truncated or its header does not describe the file exactly.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            head = f.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or length > size - 8:
                raise UserError(
                    f"{path}: truncated or no safetensors file: it has {size} bytes"
                    + (f", its header alone is said to have {length}" if len(head) == 8 else "")
                    + ". Download it again."
                )
            if length > MAX_HEADER_BYTES:
                raise UserError(f"{path}: a header of {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
            header = parse_json_object(f.read(length), f"{path}: safetensors header")
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from e
    header.pop("__metadata__", None)
    tensors = {}
    regions: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(path, name, entry)
        regions.append((begin, end, name))
        tensors[name] = LazyTensor(name, dtype, shape, path, FileReader(path, 8 + length + begin, dtype))
    _check_regions(path, sorted(regions), size - 8 - length)
    return tensors


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape and data region of one header entry."""
    if not isinstance(entry, dict):
        raise UserError(f"{path}: {name}: the header entry is no object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in NUMPY_TYPES:
        raise UserError(f"{path}: {name}: element type {str(dtype)[:40]!r} is unknown; known: {', '.join(NUMPY_TYPES)}")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise UserError(f"{path}: {name}: shape {str(shape)[:80]} or data_offsets {str(offsets)[:80]} is malformed")
    begin, end = offsets
    need = math.prod(shape) * NUMPY_TYPES[dtype].itemsize
    if end - begin != need:
        raise UserError(
            f"{path}: {name}: {dtype} of shape {tuple(shape)} takes {need} bytes, data_offsets give {end - begin}"
        )
    return dtype, tuple(shape), begin, end


def _whole_numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 8
        and all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**63 for v in value)
    )


def _check_regions(path: Path, regions: list[tuple[int, int, str]], available: int) -> None:
    """The regions follow each other from 0 to the end of the file."""
    at, before = 0, "the header"
    for begin, end, name in regions:
        if begin < at:
            raise UserError(f"{path}: the data of {name} begins at {begin} and overlaps {before}, which ends at {at}")
        if begin > at:
            raise UserError(f"{path}: {begin - at} bytes between {before} and {name} belong to no tensor")
        at, before = end, name
    if at > available:
        raise UserError(
            f"{path}: truncated: the header promises {at} bytes of data, the file has {available}. Download it again."
        )
    if at < available:
        raise UserError(f"{path}: {available - at} bytes after the last tensor ({before}) belong to none")
