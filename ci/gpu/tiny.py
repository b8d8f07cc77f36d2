"""Make GGUF files of the tiny pairs small enough to travel with a checkout that has their checkpoints.

    ci/gpu/tiny.py shrink FOLDER OUT       OUT: each .gguf without the tensors that a checkpoint has too, and tiny.json
    ci/gpu/tiny.py restore OUT FOLDER      the same files, byte for byte, with the tensors of models/tiny

The checkpoints are bf16 and the GGUF files f32, so a tensor that the converter only renamed is the checkpoint's with
two zero bytes before each value. What the converter computed stays in the file.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from gguf import GGUFReader

MODELS = Path(__file__).resolve().parents[2] / "models" / "tiny"
INDEX = "tiny.json"


def shrink(folder: Path, out: Path) -> None:
    """Write every `*.gguf` of `folder` with zeros where a checkpoint has the tensor, and where it has it."""
    known = {hashlib.sha256(values).digest(): place for place, values in _tensors()}
    index = {}
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("*.gguf")):
        data = bytearray(path.read_bytes())
        digest, copies = hashlib.sha256(data).hexdigest(), []
        for tensor in GGUFReader(path).tensors:
            start, size = int(tensor.data_offset), int(tensor.n_bytes)
            halves = np.frombuffer(data, "<u2", size // 2, start)
            if size % 4 == 0 and not halves[0::2].any():
                place = known.get(hashlib.sha256(halves[1::2].tobytes()).digest())
                if place:
                    copies.append([start, *place])
                    data[start : start + size] = bytes(size)
        index[path.name] = {"sha256": digest, "copies": copies}
        (out / path.name).write_bytes(data)
    (out / INDEX).write_text(json.dumps(index))


def restore(packed: Path, folder: Path) -> None:
    """Undo `shrink`. Exits with a message when a file is not what it was, for other checkpoints, say."""
    folder.mkdir(parents=True, exist_ok=True)
    content_of = cache(lambda checkpoint: (MODELS / checkpoint).read_bytes())
    for name, told in json.loads((packed / INDEX).read_text()).items():
        data = bytearray((packed / name).read_bytes())
        for start, checkpoint, offset, size in told["copies"]:
            values = np.frombuffer(content_of(checkpoint), "<u2", size // 2, offset)
            np.frombuffer(data, "<u2", size, start)[1::2] = values
        if hashlib.sha256(data).hexdigest() != told["sha256"]:
            raise SystemExit(f"tiny.py: {name}: is not the file that was packed; are models/tiny those of the pack?")
        (folder / name).write_bytes(data)


def _tensors() -> Iterator[tuple[tuple[str, int, int], bytes]]:
    """(checkpoint, offset, bytes) and the content of each bf16 tensor under models/tiny."""
    for path in sorted(MODELS.rglob("*.safetensors")):
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        for name, told in json.loads(content[8 : 8 + length]).items():
            if name != "__metadata__" and told["dtype"] == "BF16":
                begin, end = (8 + length + offset for offset in told["data_offsets"])
                yield (path.relative_to(MODELS).as_posix(), begin, end - begin), content[begin:end]


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("shrink", "restore"):
        sys.exit(__doc__)
    {"shrink": shrink, "restore": restore}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
