"""Several drafters of one target in one call."""

from __future__ import annotations

from pathlib import Path

import dflash_convert.conversion
import dflash_convert.tokenizer
import pytest
from checkpoints import dflash_config, dflash_tensors, eagle3_config, eagle3_tensors, make_target, save
from dflash_convert.cli import main
from dflash_convert.gguf_file import read_gguf


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return make_target(tmp_path / "target")


@pytest.fixture
def drafters(tmp_path: Path) -> list[str]:
    """Two DFlash drafters and one EAGLE3."""
    for name in ("a", "b"):
        save(tmp_path / name, dflash_config(), dflash_tensors(dflash_config()))
    save(tmp_path / "c", eagle3_config(), eagle3_tensors(eagle3_config()))
    return [str(tmp_path / name) for name in ("a", "b", "c")]


def test_several_drafters_share_one_reading_of_the_target(
    drafters: list[str],
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reads, exports = [], []
    read, export = dflash_convert.conversion.read_target, dflash_convert.tokenizer.export_tokenizer
    monkeypatch.setattr(dflash_convert.conversion, "read_target", lambda p: reads.append(p) or read(p))

    def counted(path: Path, *, llama_rules: bool, **more: object) -> bytes:
        exports.append(llama_rules)
        return export(path, llama_rules=llama_rules, **more)

    monkeypatch.setattr(dflash_convert.tokenizer, "export_tokenizer", counted)
    out = tmp_path / "out"
    out.mkdir()
    assert main([*drafters, "--target", str(target), "--outdir", str(out), "--outtype", "f16"]) == 0
    assert len(reads) == 1 and sorted(exports) == [False, True]  # EAGLE3 targets are read by rules of their own
    assert sorted(p.name for p in out.iterdir()) == ["a-F16.gguf", "b-F16.gguf", "c-F16.gguf"]
    assert capsys.readouterr().out.count("serve it:") == 3
    for name in "ab":
        assert main([str(tmp_path / name), "--target", str(target), "--outfile", str(tmp_path / "alone")]) == 0
        alone, together = read_gguf(tmp_path / "alone"), read_gguf(out / f"{name}-F16.gguf")
        assert set(alone.metadata) == set(together.metadata) and set(alone.tensors) == set(together.tensors)


def test_one_that_fails_is_named_and_the_others_are_made(
    drafters: list[str],
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b" / "model.safetensors").write_bytes(b"cut")
    assert main([*drafters, "--target", str(target)]) == 1
    assert sorted(p.name for p in tmp_path.glob("*.gguf")) == ["a-BF16.gguf", "c-BF16.gguf"]
    said = capsys.readouterr()
    assert f"{tmp_path / 'b'} is not converted: " in said.err and "truncated" in said.err
    assert said.out.count("serve it:") == 2


def test_two_of_one_name_do_not_overwrite_each_other(
    drafters: list[str],
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    other = save(tmp_path / "x" / "a", dflash_config(), dflash_tensors(dflash_config(), seed=1))
    assert main([drafters[0], str(other), "--target", str(target)]) == 1
    assert "a-BF16.gguf: another drafter of this call was just written there" in capsys.readouterr().err
    first = (tmp_path / "a-BF16.gguf").read_bytes()
    assert main([drafters[0], "--target", str(target)]) == 0
    assert (tmp_path / "a-BF16.gguf").read_bytes() == first


def test_one_output_name_for_several_is_wrong_usage(drafters: list[str], target: Path, tmp_path: Path) -> None:
    for words in ([*drafters, "--outfile", "x"], [drafters[0], "--outfile", "x", "--outdir", "."]):
        with pytest.raises(SystemExit) as e:
            main([*words, "--target", str(target)])
        assert e.value.code == 2


def test_a_target_that_is_not_there_ends_the_call(drafters: list[str], tmp_path: Path) -> None:
    assert main([*drafters, "--target", str(tmp_path / "none"), "--outdir", str(tmp_path)]) == 1
    assert not list(tmp_path.glob("*.gguf"))
