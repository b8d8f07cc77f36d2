"""Write a drafter description as GGUF: keys first, then one tensor after the other in pieces.

All goes into a temporary file beside the output, which takes the output's name only when it is complete.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
from dflash_tools.errors import UserError
from gguf import GGMLQuantizationType as T

from dflash_convert.drafter import Drafter, OutTensor
from dflash_convert.general import general_keys
from dflash_convert.gguf_file import Metadata, f32, i32_array, u32
from dflash_convert.quantize import OUTTYPES, encode_rows, tensor_type
from dflash_convert.tensors import LazyTensor

CHUNK_ELEMENTS = 1 << 18  # small enough for a processor's cache
WORKERS = 4
ALIGNMENT = 32
Piece = Callable[[], np.ndarray]
_ARRAY_TYPES = {np.dtype(np.float32): T.F32, np.dtype(np.int64): T.I64}


def write_drafter(
    drafter: Drafter,
    directory: Path,
    tokenizer: Metadata,
    outtype: str,
    outfile: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write `drafter` to `outfile`; returns the size in bytes.

    `directory` is the checkpoint's (for `general.*`), `tokenizer` the target's keys, `progress` is called with bytes
    written and in all. Memory stays at a few pieces of CHUNK_ELEMENTS (or one row). Raises UserError for weights that
    are not finite or do not fit the type, and when the disk is full; nothing is left behind then.
    """
    matrix_type, file_type = OUTTYPES[outtype]
    kinds = [_kind(t, matrix_type) for t in drafter.tensors]
    sizes = [_nbytes(t, k) for t, k in zip(drafter.tensors, kinds, strict=True)]
    writer = gguf.GGUFWriter(path=None, arch=drafter.arch)
    keys = {
        **general_keys(directory, sum(prod(t.shape) for t in drafter.tensors), file_type),
        **drafter_keys(drafter),
        **tokenizer_keys(drafter, tokenizer),
    }
    for key, v in keys.items():
        writer.add_key_value(key, v.value, v.type, v.item)
    for tensor, kind, size in zip(drafter.tensors, kinds, sizes, strict=True):
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, kind)
    with _complete_or_nothing(outfile, sum(sizes)) as part:
        writer.write_header_to_file(path=part)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with part.open("ab") as f:
            done = 0
            for tensor, kind, size in zip(drafter.tensors, kinds, sizes, strict=True):
                _pad(f)
                start = f.tell()
                for piece in _in_parallel(_pieces(tensor, kind)):
                    f.write(memoryview(np.ascontiguousarray(piece)).cast("B"))
                    progress(done + f.tell() - start, sum(sizes))
                if f.tell() - start != size:
                    raise AssertionError(f"{tensor.name}: {f.tell() - start} bytes written, {size} announced")
                done += size
            _pad(f)
            return f.tell()


def drafter_keys(drafter: Drafter) -> Metadata:
    """The keys under the architecture's prefix."""
    keys: Metadata = {
        "block_count": u32(drafter.block_count),
        "embedding_length": u32(drafter.hidden_size),
        "feed_forward_length": u32(drafter.feed_forward_size),
        "attention.head_count": u32(drafter.heads),
        "attention.head_count_kv": u32(drafter.kv_heads),
        "attention.layer_norm_rms_epsilon": f32(drafter.rms_eps),
        "target_layers": i32_array(drafter.taps),
        **drafter.rope.keys(),
        **drafter.extra,
    }
    if drafter.context_length is not None:
        keys["context_length"] = u32(drafter.context_length)
    if drafter.head_dim_stated:
        keys["attention.key_length"] = u32(drafter.head_dim)
        keys["attention.value_length"] = u32(drafter.head_dim)
    return {f"{drafter.arch}.{name}": value for name, value in keys.items()}


def tokenizer_keys(drafter: Drafter, tokenizer: Metadata) -> Metadata:
    """The target's tokenizer, with the drafter's mask token."""
    mask = {"tokenizer.ggml.mask_token_id": u32(drafter.mask_token_id)} if drafter.mask_token_id is not None else {}
    return {**tokenizer, **mask}


def _kind(tensor: OutTensor, matrix_type: T) -> T:
    if isinstance(tensor.source, np.ndarray):
        return _ARRAY_TYPES[tensor.source.dtype]
    return tensor_type(tensor.name, tensor.shape, matrix_type)


def _nbytes(tensor: OutTensor, kind: T) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return prod(tensor.shape) // block * size


def _pieces(tensor: OutTensor, kind: T) -> Iterator[Piece]:
    """What reads and encodes the tensor's bytes, in order, a bounded number of rows at a time."""
    source = tensor.source
    if isinstance(source, np.ndarray):
        yield lambda: source
        return
    n_rows, group = prod(tensor.shape[:-1]), len(tensor.row_order or (0,))
    step = max(1, CHUNK_ELEMENTS // source.row_size // group) * group
    for start in range(0, n_rows, step):
        yield partial(_encode, source, tensor.row_order, kind, start, min(start + step, n_rows))


def _encode(source: LazyTensor, order: tuple[int, ...] | None, kind: T, start: int, stop: int) -> np.ndarray:
    rows = source.read_rows(start, stop)
    if order is not None:
        # of a vector, the elements are reordered
        columns = source.row_size if len(source.shape) > 1 else 1
        rows = rows.reshape(-1, len(order), columns)[:, list(order)].reshape(rows.shape)
    return encode_rows(rows, source, start * source.row_size, kind)


def _in_parallel(pieces: Iterable[Piece]) -> Iterator[np.ndarray]:
    """Their results in order, the next few under way meanwhile (NumPy and the disk release the interpreter)."""
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting: deque[Future[np.ndarray]] = deque()
        try:
            for piece in pieces:
                waiting.append(pool.submit(piece))
                if len(waiting) > WORKERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _pad(f: BinaryIO) -> None:
    f.write(b"\0" * (-f.tell() % ALIGNMENT))


@contextmanager
def _complete_or_nothing(outfile: Path, size: int) -> Iterator[Path]:
    """A temporary name beside `outfile`, renamed to it at the end and removed on any way out before that."""
    parent = outfile.parent
    if outfile.is_dir() or not parent.is_dir():
        raise UserError(
            f"{outfile}: is a directory; give a file name"
            if outfile.is_dir()
            else f"{outfile}: the directory {parent} does not exist"
        )
    part = parent / f".{outfile.name}.{os.getpid()}.part"
    try:
        free = shutil.disk_usage(parent).free
        if free < size:
            raise UserError(f"{outfile}: needs {size / 1e6:.0f} MB, {parent} has {free / 1e6:.0f} MB left")
        yield part
        part.replace(outfile)
    except OSError as e:
        raise UserError(f"{outfile}: cannot be written: {e.strerror or e}") from e
    finally:
        part.unlink(missing_ok=True)
