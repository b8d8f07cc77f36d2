"""Write a drafter description as GGUF: keys first, then the tensors in pieces, each by the thread that encodes it.

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

import gguf
import numpy as np
from dflash_tools.errors import UserError
from gguf import GGMLQuantizationType as T

from dflash_convert.drafter import Drafter, OutTensor
from dflash_convert.general import general_keys
from dflash_convert.gguf_file import Metadata, StoredTensor, f32, i32_array, u32
from dflash_convert.quantize import OUTTYPES, encode_rows, tensor_type
from dflash_convert.tensors import LazyTensor

CHUNK_ELEMENTS = 1 << 18  # small enough for a processor's cache
COPY_BYTES = 1 << 20
WORKERS = min(8, (os.cpu_count() or 1) + 2)  # some wait for the disk
ALIGNMENT = 32
Piece = Callable[[], int]
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
    general = general_keys(directory, sum(prod(t.shape) for t in drafter.tensors), file_type)
    return write_described(drafter, general, tokenizer, matrix_type, outfile, progress)


def write_described(
    drafter: Drafter,
    general: Metadata,
    tokenizer: Metadata,
    matrix_type: T,
    outfile: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """As `write_drafter`, with the `general.*` keys given. Tensors of a GGUF file keep their type."""
    kinds = [_kind(t, matrix_type) for t in drafter.tensors]
    sizes = [_nbytes(t, k) for t, k in zip(drafter.tensors, kinds, strict=True)]
    writer = gguf.GGUFWriter(path=None, arch=drafter.arch)
    for key, v in {**general, **drafter_keys(drafter), **tokenizer_keys(drafter, tokenizer)}.items():
        writer.add_key_value(key, v.value, v.type, v.item)
    for tensor, kind, size in zip(drafter.tensors, kinds, sizes, strict=True):
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, kind)
    with _complete_or_nothing(outfile, sum(sizes)) as part:
        writer.write_header_to_file(path=part)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        starts, end = _places(part.stat().st_size, sizes)
        os.truncate(part, end)  # what no piece covers is zero
        done = 0
        for n in _in_parallel(_pieces(drafter.tensors, kinds, starts, part)):
            done += n
            progress(done, sum(sizes))
        if done != sum(sizes):
            raise AssertionError(f"{done} bytes written, {sum(sizes)} announced")
        return end


def check_place(outfile: Path) -> None:
    """Raises UserError if a file cannot be at `outfile`: a directory is there, or the one it belongs into is not."""
    if outfile.is_dir():
        raise UserError(f"{outfile}: is a directory; give a file name")
    if not outfile.parent.is_dir():
        found = "is a file" if outfile.parent.exists() else "no such directory"
        raise UserError(f"{outfile.parent}: {found}; the output goes into a directory that is there: make it first")


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
    if isinstance(tensor.source, StoredTensor):
        return tensor.source.type
    return tensor_type(tensor.name, tensor.shape, matrix_type)


def _nbytes(tensor: OutTensor, kind: T) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return prod(tensor.shape) // block * size


def _places(start: int, sizes: list[int]) -> tuple[list[int], int]:
    """Where tensors of these sizes begin, one after the other from `start`, each aligned; and where the file ends."""
    places = []
    for size in sizes:
        start += -start % ALIGNMENT
        places.append(start)
        start += size
    return places, start + -start % ALIGNMENT


def _pieces(tensors: list[OutTensor], kinds: list[T], starts: list[int], part: Path) -> Iterator[Piece]:
    """What reads, encodes and writes a bounded number of rows at a time, each in its place of `part`."""
    for tensor, kind, at in zip(tensors, kinds, starts, strict=True):
        source = tensor.source
        if isinstance(source, np.ndarray):
            yield partial(_write_at, part, at, source)
            continue
        if isinstance(source, StoredTensor):
            for byte in range(0, source.nbytes, COPY_BYTES):
                yield partial(_copy_at, part, at + byte, source, byte, min(byte + COPY_BYTES, source.nbytes))
            continue
        n_rows, group = prod(tensor.shape[:-1]), len(tensor.row_order or (0,))
        step = max(1, CHUNK_ELEMENTS // source.row_size // group) * group
        block, size = gguf.GGML_QUANT_SIZES[kind]
        for row in range(0, n_rows, step):
            place = at + row * source.row_size // block * size
            yield partial(_encode_at, part, place, source, tensor.row_order, kind, row, min(row + step, n_rows))


def _encode_at(
    part: Path, at: int, source: LazyTensor, order: tuple[int, ...] | None, kind: T, start: int, stop: int
) -> int:
    rows = source.read_rows(start, stop)
    if order is not None:
        # of a vector, the elements are reordered
        columns = source.row_size if len(source.shape) > 1 else 1
        rows = rows.reshape(-1, len(order), columns)[:, list(order)].reshape(rows.shape)
    return _write_at(part, at, encode_rows(rows, source, start * source.row_size, kind))


def _copy_at(part: Path, at: int, source: StoredTensor, start: int, stop: int) -> int:
    return _write_at(part, at, source.read_bytes(start, stop))


def _write_at(part: Path, at: int, values: np.ndarray) -> int:
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    with part.open("r+b") as f:
        f.seek(at)
        f.write(data)
    return len(data)


def _in_parallel(pieces: Iterable[Piece]) -> Iterator[int]:
    """Their results in order, the next few under way meanwhile (NumPy and the disk release the interpreter)."""
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting: deque[Future[int]] = deque()
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


@contextmanager
def _complete_or_nothing(outfile: Path, size: int) -> Iterator[Path]:
    """A temporary name beside `outfile`, renamed to it at the end and removed on any way out before that."""
    check_place(outfile)
    parent = outfile.parent
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
