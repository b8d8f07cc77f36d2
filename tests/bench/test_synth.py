"""Random models have the sizes and types of real ones, load in llama.cpp, and are never half there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from dflash_tools.bench import blocks, synth
from dflash_tools.bench.layout import Tensor
from dflash_tools.bench.mixes import MIXES, tensor_type
from dflash_tools.bench.shapes import SHAPES, find_shape
from dflash_tools.bench.synth import FIRST_PLAIN, drafter_model, make_model, target_model
from dflash_tools.errors import UserError
from dflash_tools.server import LlamaServer
from gguf import GGML_QUANT_SIZES, GGUFReader
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize

TINY = [name for name in SHAPES if name.startswith("tiny-")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


# what is in the files


@pytest.mark.parametrize("kind", list(blocks._MAKERS), ids=lambda kind: kind.name)
def test_blocks_of_each_type_are_finite_noise_of_the_right_size(kind):
    block, size = GGML_QUANT_SIZES[kind]
    data = b"".join(blocks.pieces(kind, 4096 * block, np.random.default_rng(1)))
    assert len(data) == 4096 * size
    values = np.frombuffer(data, np.uint8).reshape(1, -1)
    weights = values.view(np.float32) if kind == T.F32 else dequantize(values, kind)
    assert np.isfinite(weights).all()
    assert weights.std() == pytest.approx(0.3 if kind == T.F32 else blocks.DEVIATION, rel=0.15)
    assert abs(weights.mean()) < 0.1 * weights.std()


def test_two_tensors_do_not_have_the_same_weights():
    rng = np.random.default_rng(2)
    one, two = (b"".join(blocks.pieces(T.Q8_0, 1 << 16, rng)) for _ in range(2))
    assert one != two


def test_a_tensor_larger_than_the_slab_is_written_whole():
    elements = 3 * (blocks.SLAB_BYTES // 144) * 256 + 256
    assert (
        sum(len(piece) for piece in blocks.pieces(T.Q4_K, elements, np.random.default_rng(3))) == elements // 256 * 144
    )


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen3-4b", 4.02), ("qwen3-8b", 8.19), ("llama-3.1-8b", 8.03), ("qwen3.5-4b", 4.21), ("qwen3.5-9b", 8.95),
        ("qwen3.5-27b", 26.90), ("qwen3.6-27b", 26.90), ("qwen3.5-35b-a3b", 34.66), ("qwen3.6-35b-a3b", 34.66),
        ("gpt-oss-20b", 20.91),
    ],
)  # fmt: skip
def test_real_shapes_have_as_many_weights_as_the_models(name, billions):
    shape = find_shape(name)
    count = sum(tensor.elements for tensor, _ in target_model(shape, shape.mix).tensors)
    assert count / 1e9 == pytest.approx(billions, abs=0.01)


def test_drafters_of_real_shapes_have_the_stated_sizes():
    """1.73 B: baseline of 1762 MiB in Q8_0 for the 27B one; 0.8 B is stated for gpt-oss-20b."""
    counts = {n: sum(t.elements for t, _ in drafter_model(SHAPES[n], "q8_0").tensors) / 1e9 for n in SHAPES}
    assert drafter_model(SHAPES["qwen3.5-27b"], "q8_0").weights / 2**20 == pytest.approx(1753, abs=10)
    assert counts["gpt-oss-20b"] == pytest.approx(0.8, abs=0.02)


# which type each tensor has


@pytest.mark.parametrize(
    ("name", "mix"),
    [(n, m) for n in ("tiny-attention", "tiny-hybrid", "tiny-hybrid-moe") for m in ("q4_k_m", "q5_k_m", "q8_0")]
    + [("tiny-moe", "mxfp4")],
)
def test_types_are_those_llama_quantize_chooses(models, bin_dir, name, mix):
    model = target_model(find_shape(name), mix)
    path = make_model(model, models)
    program = "MXFP4_MOE" if mix == "mxfp4" else mix.upper()
    words = [bin_dir / "llama-quantize", "--allow-requantize", path, models / "out.gguf", program, "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert "written" in done.stdout + done.stderr or (models / "out.gguf").is_file()
    theirs = {t.name: t.tensor_type for t in GGUFReader(models / "out.gguf").tensors}
    ours = {tensor.name: kind for tensor, kind in model.tensors}
    assert {n: (ours[n].name, theirs[n].name) for n in ours if ours[n] != theirs[n]} == {}
    assert ours.keys() == theirs.keys()


def test_rows_that_are_no_whole_number_of_blocks_fall_back():
    assert tensor_type(Tensor("blk.0.ffn_up.weight", (2880, 64)), "q4_k_m", 4) == T.Q5_0
    assert tensor_type(Tensor("blk.0.ffn_up.weight", (100, 64)), "q4_k_m", 4) == T.F16


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UserError, match="there are qwen3-4b, qwen3-8b"):
        find_shape("qwen9")
    with pytest.raises(UserError, match=f"there are {', '.join(MIXES)}"):
        target_model(SHAPES["tiny-attention"], "q3_k_s")


# files


@pytest.mark.parametrize("name", TINY)
def test_tiny_shapes_answer_and_draft_in_llama_server(models, bin_dir, tmp_path, name):
    shape = find_shape(name)
    target, drafter = (
        make_model(target_model(shape, shape.mix), models),
        make_model(drafter_model(shape, "q8_0"), models),
    )
    extra = ["-c", "256", "-np", "1", "-t", "1", "--fit", "off", "--spec-synth-len", "4"]
    with LlamaServer(bin_dir, target, drafter, extra=extra, log=tmp_path / "server.log") as server:
        ids = list(range(FIRST_PLAIN, FIRST_PLAIN + 20))
        done = server.completion(ids, n_predict=20, temperature=0.0, ignore_eos=True, cache_prompt=False)
    assert done.timings.predicted_n == 20 and done.timings.draft_n_accepted > 0
    assert re.search(r"[a-z]", done.text), "the tokenizer gives text"


def test_a_file_is_made_once_and_is_another_for_another_mix(models):
    shape = SHAPES["tiny-llama"]
    first = make_model(target_model(shape, "q8_0"), models)
    before = first.stat().st_mtime_ns
    said: list[str] = []
    assert make_model(target_model(shape, "q8_0"), models, said.append) == first
    assert first.stat().st_mtime_ns == before and not said
    assert make_model(target_model(shape, "bf16"), models) != first


def test_the_same_shape_gives_the_same_bytes(tmp_path):
    model = target_model(SHAPES["tiny-hybrid"], "q4_k_m")
    one, two = make_model(model, tmp_path / "one"), make_model(model, tmp_path / "two")
    assert one.name == two.name and one.read_bytes() == two.read_bytes()


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = synth.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(synth.shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(UserError, match=r"0\.0 GiB free, qwen3-8b-q4_k_m needs 4\.7 GiB.*--models"):
        make_model(target_model(SHAPES["qwen3-8b"], "q4_k_m"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(synth.os, "pwrite", fail)
    with pytest.raises(UserError, match="No space left"):
        make_model(target_model(SHAPES["tiny-llama"], "bf16"), tmp_path)
    assert not list(tmp_path.iterdir())
