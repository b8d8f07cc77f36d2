"""Random-weight GGUF files of a shape: real sizes and types, so real costs, and noise for text.

Files are cached by everything that goes into them, and appear under their name only when complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T

from dflash_tools.bench import blocks
from dflash_tools.bench.layout import Tensor, drafter_keys, drafter_tensors, target_keys, target_tensors
from dflash_tools.bench.mixes import tensor_type
from dflash_tools.bench.shapes import Shape
from dflash_tools.errors import UserError

Say = Callable[[str], None]

_VERSION = 1  # of the generator: raised when the same shape gives other bytes
_ALIGNMENT = 32
_WRITERS = 4  # the file system's part of the work scales with threads, up to a few
_SPARE = 64 << 20
_GIB = 1 << 30
_FILLS = {"ones": 1.0, "zeros": 0.0, "minus": -1.0}

# Ids of the three special tokens, behind the 256 bytes and the one merge.
END, MASK, FIRST_PLAIN = 257, 258, 259


@dataclass(frozen=True)
class Model:
    """One file to be: its tensors with their types, and the keys of its header."""

    name: str
    arch: str
    tensors: tuple[tuple[Tensor, T], ...]
    keys: dict[str, object]
    vocab: int

    @property
    def weights(self) -> int:
        """Bytes of all tensors."""
        return sum(nbytes(tensor, kind) for tensor, kind in self.tensors)

    def bytes_of(self, name: str) -> int:
        """Bytes of one tensor, 0 when there is none of that name."""
        return sum(nbytes(tensor, kind) for tensor, kind in self.tensors if tensor.name == name)


def nbytes(tensor: Tensor, kind: T) -> int:
    """Bytes of a tensor in that type."""
    block, size = GGML_QUANT_SIZES[kind]
    return tensor.elements // block * size


def target_model(shape: Shape, mix: str) -> Model:
    """The target of `shape` in a mix of MIXES."""
    tensors = target_tensors(shape)
    typed = tuple((t, tensor_type(t, mix, shape.layers, tied=shape.tied)) for t in tensors)
    return Model(f"{shape.name}-{mix}", shape.arch, typed, target_keys(shape), shape.vocab)


def drafter_model(shape: Shape, mix: str) -> Model:
    """The DFlash drafter of `shape` in a mix of MIXES."""
    typed = tuple((t, tensor_type(t, mix, shape.drafter.layers)) for t in drafter_tensors(shape.drafter))
    return Model(f"{shape.name}-dflash-{mix}", "dflash", typed, drafter_keys(shape), shape.vocab)


def make_model(model: Model, folder: Path, say: Say = lambda _: None) -> Path:
    """`folder/<name>-<key>.gguf`, written unless it is there.

    The key is the hash of tensors, types and keys. Raises UserError when the folder cannot be written or lacks room.
    """
    outfile = folder / f"{model.name}-{_key(model)}.gguf"
    if outfile.is_file():
        return outfile
    part = outfile.with_name(f".{outfile.name}.{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = model.weights + _SPARE, shutil.disk_usage(folder).free
        if free < needed:
            raise UserError(
                f"{folder}: {free / _GIB:.1f} GiB free, {model.name} needs {needed / _GIB:.1f} GiB. Make room (older "
                "models there can go), or name a folder on a larger disk with --models"
            )
        start = time.monotonic()
        _write(model, part)
        part.replace(outfile)
    except OSError as cause:
        raise UserError(f"{outfile}: cannot be written ({cause.strerror or cause})") from cause
    finally:
        part.unlink(missing_ok=True)
    seconds = time.monotonic() - start
    size = outfile.stat().st_size
    say(f"{outfile.name}: {size / _GIB:.2f} GiB of random weights in {seconds:.1f} s ({size / seconds / 1e6:.0f} MB/s)")
    return outfile


def _key(model: Model) -> str:
    table = [(t.name, t.shape, t.fill, int(kind)) for t, kind in model.tensors]
    text = json.dumps([_VERSION, model.arch, table, model.keys, model.vocab], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _write(model: Model, part: Path) -> None:
    writer = gguf.GGUFWriter(path=None, arch=model.arch)
    for key, value in (model.keys | _tokenizer_keys(model)).items():
        _add_key(writer, key, value)
    for tensor, kind in model.tensors:
        extents = tuple(reversed(tensor.shape))
        writer.add_tensor_info(tensor.name, extents, np.dtype(np.float32), nbytes(tensor, kind), kind)
    writer.write_header_to_file(path=part)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(model.name.encode()).digest()[:8], "little"))
    place = _aligned(part.stat().st_size)
    with part.open("r+b", buffering=0) as f, ThreadPoolExecutor(_WRITERS) as pool:
        jobs = []
        for tensor, kind in model.tensors:
            for piece in _content(tensor, kind, rng):
                jobs.append(pool.submit(_write_at, f.fileno(), piece, place))
                place += len(piece)
            place = _aligned(place)
        for job in jobs:
            job.result()
        f.truncate(place)


def _aligned(place: int) -> int:
    return place + -place % _ALIGNMENT


def _content(tensor: Tensor, kind: T, rng: np.random.Generator) -> Iterator[memoryview]:
    if tensor.fill == "noise":
        return blocks.pieces(kind, tensor.elements, rng)
    return iter([memoryview(np.full(tensor.elements, _FILLS[tensor.fill], np.float32)).cast("B")])


def _write_at(fd: int, piece: memoryview, place: int) -> None:
    while piece:
        written = os.pwrite(fd, piece, place)
        piece, place = piece[written:], place + written


def _add_key(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _tokenizer_keys(model: Model) -> dict[str, object]:
    """A byte-level BPE with one merge, filled up to the vocabulary with plain words: valid, and quick to load."""
    tokens = [*_BYTES, "th", "<|end|>", "<|mask|>", *(f"t{i}" for i in range(FIRST_PLAIN, model.vocab))]
    types = [1] * len(tokens)
    types[END] = types[MASK] = 3  # control
    keys: dict[str, object] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["t h"],
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.ggml.padding_token_id": END,
        "tokenizer.ggml.add_bos_token": False,
        "general.name": model.name,
    }
    if model.arch == "dflash":
        keys["tokenizer.ggml.mask_token_id"] = MASK
    return keys


def _byte_tokens() -> list[str]:
    """The 256 bytes as byte-level BPE spells them: printable ones as they are, the others from U+0100 on."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


_BYTES = _byte_tokens()
