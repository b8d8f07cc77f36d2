"""The command as a whole: summary, default names, memory, interruption, no torch, and any input handled."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import dflash_convert.cli
import dflash_convert.write
import dflash_tools
import gguf
import numpy as np
import pytest
import torch
from checkpoints import (
    MASK,
    dflash_config,
    dflash_tensors,
    eagle3_config,
    eagle3_tensors,
    make_target,
    save,
)
from dflash_convert.cli import convert, main
from dflash_convert.quantize import _to_bf16, _to_q8_0
from dflash_tools.errors import UserError
from test_oracle import assert_same_file

SOURCES = os.pathsep.join(str(Path(m.__file__).parents[1]) for m in (dflash_convert, dflash_tools))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def gguf_target(tmp_path: Path, target: Path, llama_cpp: Path, exports: dict[Any, bytes]) -> Path:
    """A GGUF with the target's tokenizer and sizes, so that no other process is needed."""
    drafter = save(tmp_path / "for-tokenizer", dflash_config(), dflash_tensors(dflash_config()))
    made = tmp_path / "t.gguf"
    convert(drafter, target, made, llama_cpp=llama_cpp)
    reader = gguf.GGUFReader(made)
    writer = gguf.GGUFWriter(tmp_path / "target.gguf", "qwen3")
    writer.add_block_count(8)
    writer.add_embedding_length(64)
    for f in reader.fields.values():
        if f.name.startswith("tokenizer.") and f.name != "tokenizer.ggml.mask_token_id":
            kind = f.types[0]
            writer.add_key_value(f.name, f.contents(), kind, f.types[-1] if len(f.types) > 1 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return tmp_path / "target.gguf"


def test_summary_says_what_was_read_and_how_to_serve_it(
    tmp_path: Path, gguf_target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drafter = save(tmp_path / "My-Drafter", dflash_config(), dflash_tensors(dflash_config()))
    out = tmp_path / "o.gguf"
    assert main([str(drafter), "--target-model-dir", str(gguf_target), "--outfile", str(out)]) == 0
    text = capsys.readouterr().out
    for line in (
        "family:     DFlash",
        "layers:     2 of width 64",
        "block:      8 tokens, anchor included",
        "taps:       inputs of target layers 1, 3, 6",
        f"mask token: {MASK}",
        "vocabulary: 320 tokens",
        "tensors:    25",
        f"serve it:   llama-server -m {gguf_target} -md {out} --dflash",
    ):
        assert line in text


def test_eagle3_summary_shows_the_taps_it_derived(
    tmp_path: Path, gguf_target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = eagle3_config(eagle_config={"eagle_aux_hidden_state_layer_ids": [0, 2, 6]})
    drafter = save(tmp_path / "d", config, eagle3_tensors(config))
    args = [str(drafter), "--target-model-dir", str(gguf_target), "--outfile", str(tmp_path / "o.gguf")]
    assert main(args) == 0
    text = capsys.readouterr().out
    assert "inputs of target layers 1, 3, 7" in text and "SpecForge" in text and "--taps inputs" in text
    assert "--eagle3" in text
    assert "320 tokens, 128 of them drafted" in text


@pytest.mark.parametrize("layout", [{}, {"aux_hidden_state_layer_ids": [1, 3, 6]}])
def test_the_ids_of_a_block_drafter_can_be_read_the_other_way(
    layout: dict[str, Any], tmp_path: Path, gguf_target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """z-lab names outputs, speculators inputs."""
    config = dflash_config()
    tensors, other, ids = dflash_tensors(config), "inputs", [0, 2, 5]
    if layout:
        inner = {k: config.pop(k) for k in list(config) if k not in ("architectures", "block_size")}
        config |= {"transformer_layer_config": inner, "mask_token_id": MASK, **layout}
        other, ids = "outputs", [2, 4, 7]
    drafter = save(tmp_path / "d", config, tensors)
    args = [str(drafter), "--target-model-dir", str(gguf_target), "--outfile", str(tmp_path / "o.gguf")]
    assert main([*args, "--taps", other]) == 0
    assert f"the inputs of layers {ids} instead of [1, 3, 6]" in capsys.readouterr().out


def test_mixed_causality_is_mentioned(tmp_path: Path, gguf_target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = dflash_config(
        layer_types=["sliding_attention", "full_attention"], use_sliding_window=True, sliding_window=64
    )
    drafter = save(tmp_path / "d", config, dflash_tensors(config))
    assert main([str(drafter), "--target-model-dir", str(gguf_target), "--outfile", str(tmp_path / "o.gguf")]) == 0
    assert "1 of 2 layers are causal inside a block" in capsys.readouterr().out


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float32, "F16")])
def test_default_name_and_type_follow_the_weights(
    dtype: torch.dtype, name: str, tmp_path: Path, gguf_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = save(tmp_path / "My-Drafter", dflash_config(), dflash_tensors(dflash_config()), dtype)
    monkeypatch.chdir(tmp_path)
    for given in (drafter, drafter / "model.safetensors"):
        _, out, _ = convert(given, gguf_target)
        assert out == Path(f"My-Drafter-{name}.gguf")
        assert gguf.GGUFReader(out).fields["general.name"].contents() == "My Drafter"
        out.unlink()


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_bin_gives_the_same_file(zipped: bool, tmp_path: Path, gguf_target: Path) -> None:
    tensors = {n: t.to(torch.bfloat16) for n, t in dflash_tensors(dflash_config()).items()}
    drafter = save(tmp_path / "a" / "d", dflash_config(), tensors)
    old = save(tmp_path / "b" / "d", dflash_config(), tensors)
    (old / "model.safetensors").unlink()
    torch.save(tensors, old / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    for directory in (drafter, old):
        convert(directory, gguf_target, directory.with_suffix(".gguf"))
    assert_same_file(drafter.with_suffix(".gguf"), old.with_suffix(".gguf"))


def test_a_pickle_that_ends_early_is_an_error_of_ours(tmp_path: Path, gguf_target: Path) -> None:
    drafter = save(tmp_path / "d", dflash_config(), {})
    (drafter / "model.safetensors").unlink()
    torch.save({}, tmp_path / "whole.bin")
    with (
        zipfile.ZipFile(tmp_path / "whole.bin") as whole,
        zipfile.ZipFile(drafter / "pytorch_model.bin", "w") as out,
    ):
        for name in whole.namelist():
            out.writestr(name, b"" if name.endswith("data.pkl") else whole.read(name))
    with pytest.raises(UserError, match=r"torch cannot read it \(weights_only\): EOFError"):
        convert(drafter, gguf_target, tmp_path / "o.gguf")


def test_pickles_with_code_are_refused_and_not_run(tmp_path: Path, gguf_target: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "ran"), "w"))

    drafter = save(tmp_path / "d", dflash_config(), {"x": torch.zeros(1)})
    (drafter / "model.safetensors").unlink()
    torch.save({"fc.weight": Evil()}, drafter / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: torch cannot read it"):
        convert(drafter, gguf_target, tmp_path / "o.gguf")
    (drafter / "pytorch_model.bin").write_bytes(b"\x80\x04garbage")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: torch cannot read it"):
        convert(drafter, gguf_target, tmp_path / "o.gguf")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "o.gguf").exists()


NO_TORCH = """
import importlib.machinery as m
find = m.PathFinder.find_spec
m.PathFinder.find_spec = staticmethod(
    lambda name, path=None, target=None: None if name.partition(".")[0] == "torch" else find(name, path, target))
"""


def run_cli(args: list[object], cwd: Path, *extra_path: Path) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, extra_path), SOURCES])}
    # a process in the background ignores Ctrl-C, and so would the one it starts
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from dflash_convert.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code]
    return subprocess.Popen(
        [*command, *map(str, args)], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_torch_is_not_needed(tmp_path: Path, target: Path, llama_cpp: Path) -> None:
    """Neither for the weights nor for the tokenizer of an HF target."""
    hide = tmp_path / "hide"
    hide.mkdir()
    (hide / "sitecustomize.py").write_text(NO_TORCH, encoding="utf-8")
    drafter = save(tmp_path / "d", dflash_config(), dflash_tensors(dflash_config()))
    code = (
        "import sys, importlib.util; from pathlib import Path; from dflash_convert.cli import convert\n"
        "assert importlib.util.find_spec('torch') is None\n"
        "convert(*map(Path, sys.argv[1:4]), llama_cpp=Path(sys.argv[4]))"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(hide), SOURCES])}
    done = subprocess.run(
        [sys.executable, "-c", code, drafter, target, tmp_path / "a.gguf", llama_cpp],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    convert(drafter, target, tmp_path / "b.gguf", llama_cpp=llama_cpp)
    assert_same_file(tmp_path / "a.gguf", tmp_path / "b.gguf")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_neither_output_nor_temporary_file(
    number: signal.Signals, tmp_path: Path, gguf_target: Path
) -> None:
    big = dflash_config(intermediate_size=1 << 20)
    tensors = dflash_tensors(dflash_config())
    for i in range(2):
        for name, shape in (("gate", (1 << 20, 64)), ("up", (1 << 20, 64)), ("down", (64, 1 << 20))):
            tensors[f"layers.{i}.mlp.{name}_proj.weight"] = torch.zeros(shape, dtype=torch.bfloat16)
    drafter = save(tmp_path / "d", big, tensors)
    out = tmp_path / "out"
    out.mkdir()
    args = [drafter, "--target-model-dir", gguf_target, "--outfile", out / "d.gguf", "--outtype", "q8_0"]
    process = run_cli(args, tmp_path)
    deadline = time.monotonic() + 60
    while not list(out.iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert list(out.iterdir()) == [] and process.returncode == 130, err
    assert "interrupted" in err and "Traceback" not in err


def test_memory_does_not_grow_with_the_drafter(tmp_path: Path, gguf_target: Path) -> None:
    """A 384 MB drafter within 192 MB over what the imports take, in every type that is computed."""
    config = dflash_config(intermediate_size=1 << 19)
    tensors = dflash_tensors(dflash_config())
    for i in range(2):
        for name, shape in (("gate", (1 << 19, 64)), ("up", (1 << 19, 64)), ("down", (64, 1 << 19))):
            tensors[f"layers.{i}.mlp.{name}_proj.weight"] = torch.zeros(shape, dtype=torch.bfloat16)
    drafter = save(tmp_path / "d", config, tensors)
    code = (
        "import sys, resource; from pathlib import Path; from dflash_convert.cli import convert\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); convert(*map(Path, sys.argv[1:4]), sys.argv[4]); print((peak() - before) * 1024)"
    )
    env = os.environ | {"PYTHONPATH": SOURCES}
    for outtype in ("bf16", "q8_0"):
        args = [sys.executable, "-c", code, drafter, gguf_target, tmp_path / "o.gguf", outtype]
        done = subprocess.run(args, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < 192 << 20, (outtype, int(done.stdout) >> 20)


def test_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, gguf_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = save(tmp_path / "d", dflash_config(), dflash_tensors(dflash_config()))
    out = tmp_path / "out"
    out.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # the write fails half-way, as on a full disk
    try:
        with pytest.raises(UserError, match="cannot be written"):
            convert(drafter, gguf_target, out / "d.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(out.iterdir()) == []


def test_disk_without_room_is_an_error_before_anything_is_written(
    tmp_path: Path, gguf_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = save(tmp_path / "d", dflash_config(), dflash_tensors(dflash_config()))
    usage = dflash_convert.write.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(dflash_convert.write.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(UserError, match="has 0 MB left"):
        convert(drafter, gguf_target, tmp_path / "o.gguf")
    assert not list(tmp_path.glob("*o.gguf*"))


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-30, 1e-41, 1e30])
def test_fast_encoders_have_the_bits_of_the_gguf_package(scale: float) -> None:
    rng = np.random.default_rng(7)
    values = (rng.standard_normal((512, 256)) * scale).astype(np.float32)
    values[0], values[1] = 0, np.tile(np.array([0.5, -0.5, 1.5, 127], dtype=np.float32) * np.float32(scale), 64)
    with np.errstate(all="ignore"):
        for encode, kind in ((_to_q8_0, gguf.GGMLQuantizationType.Q8_0), (_to_bf16, gguf.GGMLQuantizationType.BF16)):
            assert encode(values).tobytes() == gguf.quants.quantize(values, kind).tobytes()


def test_q8_0_rounds_halves_and_their_neighbours_as_ggml() -> None:
    """With a largest number of 127 the scale is 1, so that every number is rounded as it stands."""
    halves = np.arange(-126.5, 127, dtype=np.float32)
    near = np.concatenate([np.nextafter(halves, np.float32(-200)), halves, np.nextafter(halves, np.float32(200))])
    small = np.float32([0.0, -0.0, 1e-45, -1e-45, 1e-30, 0.25, 127, -127])
    pool = np.concatenate([near, small, -small])
    values = np.random.default_rng(3).choice(pool, (4096, 32)).astype(np.float32)
    values[:, 0] = 127
    expected = np.sign(values) * np.floor(np.abs(values.astype(np.float64)) + 0.5)
    assert (np.ascontiguousarray(_to_q8_0(values)["q"]).view(np.int8).reshape(-1, 32) == expected).all()


@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0"])
def test_many_pieces_in_parallel_are_the_same_bytes(
    outtype: str, tmp_path: Path, gguf_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = save(tmp_path / "d", dflash_config(), dflash_tensors(dflash_config()))
    convert(drafter, gguf_target, tmp_path / "whole.gguf", outtype)
    monkeypatch.setattr(dflash_convert.write, "CHUNK_ELEMENTS", 200)
    convert(drafter, gguf_target, tmp_path / "pieces.gguf", outtype)
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "pieces.gguf").read_bytes()
