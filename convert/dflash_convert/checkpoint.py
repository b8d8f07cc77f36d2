"""Open a drafter checkpoint and list its tensors without loading them.

A checkpoint is a directory or a single file beside its `config.json`. Shards and the old pickle format look the same
from here: a mapping of names to lazy tensors.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dflash_tools.errors import UserError

from dflash_convert.jsonfile import Config, read_json_object
from dflash_convert.safetensors_file import read_safetensors
from dflash_convert.tensors import LazyTensor
from dflash_convert.torch_bin import read_torch_bin

INDEX_END = ".index.json"
_KINDS = (("model", ".safetensors"), ("pytorch_model", ".bin"))  # in transformers' order
_SHARD = re.compile(r"-[0-9]{5}-of-(?!00001)[0-9]{5}\.[a-z]+$")  # one of several


@dataclass(frozen=True)
class Checkpoint:
    """`directory` holds config.json and the weights; `tensors` are by name as stored; `files` were read for them."""

    directory: Path
    config: Config
    tensors: dict[str, LazyTensor]
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        return model_name(self.directory)


def model_name(directory: Path) -> str:
    """The name of the model in `directory`: the directory's, or in the Hub's cache, where directories are named by
    commits (`models--ORG--NAME/snapshots/COMMIT/FOLDER`), NAME or NAME-FOLDER."""
    parts = directory.parts
    for i in range(len(parts) - 2):
        if parts[i].startswith("models--") and parts[i + 1] == "snapshots":
            return "-".join((parts[i].rpartition("--")[2], *parts[i + 3 :]))
    return directory.name


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a directory (config.json + weights) or a weights file with config.json beside it.

    Raises UserError if something is missing or does not hold together.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or directory; give the drafter's directory with config.json and weights")
    # absolute, because the name of the directory names the model; not resolved, because the Hub's cache is symlinks
    directory = Path(os.path.abspath(path if path.is_dir() else path.parent))  # noqa: PTH100
    if path.suffix == ".gguf":
        raise UserError(
            f"{path}: a GGUF file is given as drafter; give the Hugging Face checkpoint (config.json + safetensors)"
        )
    if path.is_file() and (path.suffix == ".json" or _SHARD.search(path.name)):
        what = "no weights" if path.suffix == ".json" else "one shard of several"
        raise UserError(f"{path}: {what}; give the drafter's directory, {directory}")
    config = directory / "config.json"
    if not config.is_file():
        hint = name_gguf(directory)
        raise UserError(f"{config}: not found; a drafter needs its config.json beside the weights{hint}")
    files, weight_map = ([path], None) if path.is_file() else _weight_files(directory)
    tensors = _read_files(files)
    if weight_map is not None:
        _check_index(directory, weight_map, tensors)
    if not tensors:
        raise UserError(f"{files[0]}: holds no tensors")
    return Checkpoint(directory, Config(config, read_json_object(config)), tensors, tuple(files))


def name_gguf(directory: Path) -> str:
    """A clause that names a GGUF file of `directory`, for one that lacks what an HF directory has; "" without one."""
    found = sorted(p.name for p in directory.glob("*.gguf"))
    return f"; if {found[0]} is meant, give that file" if found else ""


def weight_names(names: Collection[str]) -> list[str]:
    """Of the names of files in a directory, those of its weights: a whole file, an index, or shards without one.

    Of several sets transformers' choice: safetensors first, and a whole file before an index. Empty if there is none.
    """
    for stem, end in _KINDS:
        for name in (f"{stem}{end}", f"{stem}{end}{INDEX_END}"):
            if name in names:
                return [name]
        if shards := fnmatch.filter(names, f"{stem}*{end}"):
            return sorted(shards)
    return []


def find_weight_files(directory: Path) -> list[Path]:
    """The weight files of an HF directory; empty if it has none. Raises UserError if an index is malformed."""
    index, files = _weights_of(directory)
    return sorted({directory / shard for shard in read_weight_map(index).values()}) if index else files


def _weights_of(directory: Path) -> tuple[Path | None, list[Path]]:
    """The index that holds, None if none does, and otherwise the files."""
    found = [directory / name for name in weight_names([p.name for p in directory.iterdir() if p.is_file()])]
    return (found[0], []) if found and found[0].name.endswith(INDEX_END) else (None, found)


def _weight_files(directory: Path) -> tuple[list[Path], dict[str, str] | None]:
    files = find_weight_files(directory)
    if not files:
        others = sorted(p.name for p in directory.iterdir() if p.suffix in (".safetensors", ".bin", ".pt"))
        hint = f" It has {', '.join(others[:5])}: give the file itself if it is the drafter." if others else ""
        raise UserError(f"{directory}: no weights: neither model.safetensors (or shards) nor pytorch_model.bin.{hint}")
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: named by the index of the checkpoint but not there. Download it.")
    index, _ = _weights_of(directory)
    return files, read_weight_map(index) if index else None


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor -> shard, a file name without directories. Raises UserError if the index is malformed."""
    found = read_json_object(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(v, str) for v in found.values()):
        raise UserError(f"{index}: weight_map is missing, empty or malformed")
    for shard in found.values():
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
            raise UserError(f"{index}: weight_map names {shard!r}; a file name without directories is expected")
    return found


def _read_files(files: list[Path]) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        found = read_torch_bin(file) if file.suffix in (".bin", ".pt", ".pth") else read_safetensors(file)
        for name, tensor in found.items():
            if name in tensors:
                raise UserError(f"{file}: {name} stands in {tensors[name].file.name} too")
            tensors[name] = tensor
    return tensors


def _check_index(directory: Path, weight_map: dict[str, str], tensors: dict[str, LazyTensor]) -> None:
    missing = sorted(n for n, shard in weight_map.items() if n not in tensors or tensors[n].file.name != shard)
    extra = sorted(n for n in tensors if n not in weight_map)
    if missing or extra:
        raise UserError(
            f"{directory}: the index and the shards disagree: "
            + "; ".join(
                f"{what}: {', '.join(names[:6])}"
                for what, names in (("not in the shard the index names", missing), ("not in the index", extra))
                if names
            )
        )
