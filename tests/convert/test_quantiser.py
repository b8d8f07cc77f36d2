"""`--outtype q4_k_m` and its like where there is no build, or its quantiser fails. What comes out of a real one is
tested in tests/server/test_quantised_drafters.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import dflash_convert.quantiser
import dflash_convert.tokenizer
import pytest
from checkpoints import dflash_config, dflash_tensors, make_target, save
from dflash_convert.checkpoint import open_checkpoint
from dflash_convert.cli import convert, main
from dflash_convert.quantiser import plain_type
from dflash_tools.errors import UserError
from dflash_tools.fork.plan import PROGRAMS
from dflash_tools.fork.workspace import Workspace
from fuzz import small_target

SOURCES = os.pathsep.join(str(Path(__file__).parents[2] / d) for d in ("convert", "tools"))


@pytest.fixture
def drafter(tmp_path: Path) -> Path:
    return save(tmp_path / "d", dflash_config(), dflash_tensors(dflash_config()))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return make_target(tmp_path / "t")


def program(folder: Path, script: str) -> Path:
    """A quantiser that does `script`."""
    folder.mkdir()
    path = folder / "llama-quantize"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return folder


def test_without_a_build_it_says_what_to_do(
    drafter: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    monkeypatch.setattr("dflash_tools.fork.build.find_workspace", lambda: workspace)
    with pytest.raises(UserError, match=r"run build-fork first\. Without a build: --outtype q8_0"):
        convert(drafter, target, tmp_path / "o.gguf", "q4_k_m")
    assert not list(tmp_path.glob("*o.gguf*")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo so far; echo no room left >&2; exit 3", r"exit status 3\); its last lines:\n  no room left"),
        ("exit 0", "exit status 0"),  # no file
        ("kill -9 $$", "exit status -9"),
        ('for last; do file=$before; before=$last; done; echo rubbish > "$file"', "not a GGUF file"),
    ],
)
def test_a_quantiser_that_fails_leaves_nothing(
    script: str, said: str, drafter: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = program(tmp_path / "bin", script)
    monkeypatch.setattr(dflash_convert.quantiser, "bin_dir", lambda: folder)
    out = tmp_path / "out"
    out.mkdir()
    (out / "o.gguf").write_bytes(b"before")
    with pytest.raises(UserError, match=said):
        convert(drafter, target, out / "o.gguf", "q4_k_m")
    assert [p.name for p in out.iterdir()] == ["o.gguf"] and (out / "o.gguf").read_bytes() == b"before"


@pytest.mark.parametrize("kind", ["f16", "q4_k_m"])
def test_output_that_has_no_place_is_refused_before_anything_is_run(
    kind: str, drafter: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dflash_convert.tokenizer, "export_tokenizer", lambda *_, **__: pytest.fail("too late"))
    for where, said in ((tmp_path / "none", "no such directory"), (drafter / "config.json", "is a file")):
        with pytest.raises(UserError, match=f"{where}: {said}"):
            convert(drafter, target, outtype=kind, outdir=where)
    with pytest.raises(UserError, match=f"{tmp_path}: is a directory"):
        convert(drafter, target, tmp_path, outtype=kind)


def test_a_full_disk_is_reported_with_the_name_the_user_gave(
    drafter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = program(tmp_path / "bin", "exit 0")
    monkeypatch.setattr(dflash_convert.quantiser, "bin_dir", lambda: folder)
    monkeypatch.setattr("dflash_convert.write.shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(UserError, match=f"{tmp_path}/o.gguf: needs"):
        convert(drafter, small_target(tmp_path / "t.gguf"), tmp_path / "o.gguf", "q4_k_m")


def test_interruption_ends_the_quantiser_and_leaves_nothing(tmp_path: Path, drafter: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / ".fork").mkdir(parents=True)
    (checkout / "pyproject.toml").write_text('name = "llama-dflash"\n', encoding="utf-8")
    folder = program(checkout / ".fork" / "bin", f"echo $$ > {tmp_path / 'pid'}; exec sleep 60")
    for other in PROGRAMS:
        if other != "llama-quantize":
            (folder / other).touch()
    out = tmp_path / "out"
    out.mkdir()
    words = [drafter, "--target", small_target(tmp_path / "t.gguf"), "--outfile", out / "o", "--outtype", "q4_0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dflash_convert.cli", *map(str, words)], cwd=checkout, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": SOURCES},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(out.iterdir())) == 1
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in said and list(out.iterdir()) == []
    status = Path("/proc") / (tmp_path / "pid").read_text().strip() / "status"
    assert not status.exists() or "State:\tZ" in status.read_text()  # killed; whether init has taken note is its affair


def test_interruption_while_the_quantiser_starts_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, started = program(tmp_path / "bin", "exec sleep 60"), []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: object, **more: object) -> None:
            super().__init__(*args, **more)  # type: ignore[call-overload]
            started.append(self.pid)
            signal.raise_signal(signal.SIGTERM)

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            dflash_convert.quantiser._run(folder / "llama-quantize", [], tmp_path / "in", tmp_path / "out", "q4_0")
    finally:
        assert signal.signal(signal.SIGTERM, before) is stop
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_it_quantises_from_the_type_that_loses_nothing(tmp_path: Path) -> None:
    import torch

    for dtype, kind in ((torch.bfloat16, "bf16"), (torch.float16, "f16"), (torch.float32, "f32")):
        path = save(tmp_path / kind, dflash_config(), dflash_tensors(dflash_config()), dtype)
        assert plain_type(open_checkpoint(path)) == kind


def test_unknown_types_are_wrong_usage(drafter: Path, target: Path) -> None:
    with pytest.raises(SystemExit) as e:
        main([str(drafter), "--target", str(target), "--outtype", "iq1_s"])
    assert e.value.code == 2
