"""Which files of a directory are its weights where it holds several sets, and what is no set at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import Tensors, dflash_config, dflash_tensors, write_json
from dflash_convert.checkpoint import find_weight_files, open_checkpoint, weight_names
from dflash_convert.target import read_target
from dflash_tools.errors import UserError
from fuzz import small_target
from safetensors.torch import save_file

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
BINS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


def halves(tensors: Tensors) -> tuple[Tensors, Tensors]:
    names = sorted(tensors)
    return {n: tensors[n] for n in names[::2]}, {n: tensors[n] for n in names[1::2]}


def whole(directory: Path, tensors: Tensors) -> None:
    save_file(tensors, directory / "model.safetensors")


def whole_bin(directory: Path, tensors: Tensors) -> None:
    torch.save(tensors, directory / "pytorch_model.bin")


def shards(directory: Path, tensors: Tensors) -> None:
    for name, part in zip(SHARDS, halves(tensors), strict=True):
        save_file(part, directory / name)


def bins(directory: Path, tensors: Tensors) -> None:
    for name, part in zip(BINS, halves(tensors), strict=True):
        torch.save(part, directory / name)


def index(directory: Path, tensors: Tensors, names: tuple[str, str] = SHARDS, file: str = "model.safetensors") -> None:
    second = halves(tensors)[1]
    write_json(directory / f"{file}.index.json", {"weight_map": {n: names[n in second] for n in tensors}})


def bin_index(directory: Path, tensors: Tensors) -> None:
    index(directory, tensors, BINS, "pytorch_model.bin")


Write = Callable[[Path, Tensors], None]


@pytest.mark.parametrize(
    ("right", "wrong", "files"),
    [
        ([whole], [whole_bin], ["model.safetensors"]),
        ([whole], [bins, bin_index], ["model.safetensors"]),
        ([whole], [shards], ["model.safetensors"]),
        ([whole], [shards, index], ["model.safetensors"]),
        ([shards, index], [whole_bin, bins, bin_index], [*SHARDS]),
        ([shards], [whole_bin], [*SHARDS]),
        ([whole_bin], [bins, bin_index], ["pytorch_model.bin"]),
        ([bins, bin_index], [], [*BINS]),
    ],
)
def test_of_several_sets_the_one_that_transformers_takes_is_read(
    right: list[Write], wrong: list[Write], files: list[str], tmp_path: Path
) -> None:
    tensors = dflash_tensors(dflash_config())
    for write in right:
        write(tmp_path, tensors)
    for write in wrong:
        write(tmp_path, {n: t + 1 for n, t in tensors.items()})
    write_json(tmp_path / "config.json", dflash_config())
    checkpoint = open_checkpoint(tmp_path)
    assert [f.name for f in checkpoint.files] == files == [f.name for f in find_weight_files(tmp_path)]
    norm = checkpoint.tensors["norm.weight"]
    assert torch.equal(torch.from_numpy(norm.read_flat(0, norm.size)), tensors["norm.weight"])


def test_indices_whose_shards_are_not_there_do_not_matter_beside_a_whole_file(tmp_path: Path) -> None:
    tensors = dflash_tensors(dflash_config())
    whole(tmp_path, tensors)
    index(tmp_path, tensors)
    bin_index(tmp_path, tensors)
    assert find_weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    assert weight_names(["a.bin", "config.json", "model.gguf"]) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (SHARDS[0], "one shard of several"),
        ("config.json", "no weights"),
        ("model.safetensors.index.json", "no weights"),
    ],
)
def test_a_part_of_a_checkpoint_is_answered_with_its_directory(name: str, said: str, tmp_path: Path) -> None:
    tensors = dflash_tensors(dflash_config())
    shards(tmp_path, tensors)
    index(tmp_path, tensors)
    write_json(tmp_path / "config.json", dflash_config())
    with pytest.raises(UserError, match=f"{name}: {said}; give the drafter's directory, {tmp_path}"):
        open_checkpoint(tmp_path / name)


def test_one_shard_of_one_is_a_whole_checkpoint(tmp_path: Path) -> None:
    save_file(dflash_tensors(dflash_config()), tmp_path / "model-00001-of-00001.safetensors")
    write_json(tmp_path / "config.json", dflash_config())
    assert len(open_checkpoint(tmp_path / "model-00001-of-00001.safetensors").tensors) > 20


def test_a_gguf_in_a_directory_without_config_is_named(tmp_path: Path) -> None:
    small_target(tmp_path / "t.gguf")
    for read in (open_checkpoint, read_target):
        with pytest.raises(UserError, match=r"config\.json: not found; .*; if t\.gguf is meant, give that file"):
            read(tmp_path)


def test_of_a_split_gguf_target_the_head_is_not_taken_for_its_embeddings(tmp_path: Path) -> None:
    from old_gguf import rewrite

    one = small_target(tmp_path / "t.gguf")
    assert read_target(one).head() is not None
    split = rewrite(one, tmp_path / "t-00001-of-00002.gguf", keys={"split.count": 2})
    assert read_target(split).head() is None and read_target(split).embedding() is not None
