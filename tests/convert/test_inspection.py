"""`convert-dflash --check`: the table, what is odd, and the exit status."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import gguf
import numpy as np
import pytest
from checkpoints import MASK, VOCAB, dflash_config, dflash_tensors, eagle3_config, eagle3_tensors, make_target, save
from dflash_convert.cli import convert, main
from dflash_convert.conversion import LoadedTarget
from dflash_convert.inspection import Report, inspect
from dspark_checkpoints import deepspec, dspark_tensors
from huggingface_hub.errors import OfflineModeIsEnabled
from old_gguf import BUUN, rewrite, write_old


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(tmp_path / "checkpoint", dflash_config(), dflash_tensors(dflash_config()))


@pytest.fixture
def made(checkpoint: Path, target: Path, tmp_path: Path) -> Path:
    return convert(checkpoint, target, tmp_path / "made.gguf")[1]


@pytest.fixture
def eagle3(target: Path, tmp_path: Path) -> Path:
    path = save(tmp_path / "e", eagle3_config(), eagle3_tensors(eagle3_config()))
    return convert(path, target, tmp_path / "eagle3.gguf")[1]


def wrong(report: Report) -> str:
    return "\n".join(o.what for o in report.oddities if o.wrong)


def test_a_good_drafter_is_described_and_nothing_is_odd(
    checkpoint: Path, made: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(made.parent.rglob("*"))
    for path in (checkpoint, made):
        assert main(["--check", str(path)]) == 0
        assert main(["--check", str(path), "--target", str(target)]) == 0
        alone, held = capsys.readouterr().out.split(f"{path}\n")[1:]
        for line in ("DFlash, served with --dflash", "2 of width 64 (4 heads of 32, 2 of keys), MLP 96",
                     "8 tokens, anchor included: 7 drafted", f"mask token    {MASK}", "25 BF16" if path == checkpoint
                     else "15 BF16, 10 F32", "7 or more; reads the inputs of 1, 3, 6", "nothing is odd"):  # fmt: skip
            assert line in alone and line in held, line
        assert f"vocabulary    {VOCAB} tokens" in held and f"target: {VOCAB}" in held and "target:" not in alone
    assert sorted(made.parent.rglob("*")) == before


@pytest.mark.parametrize(("from_anchor", "drafted"), [(None, 7), (True, 7), (False, 6)])
def test_as_many_drafted_tokens_are_named_as_slots_draft(
    from_anchor: bool | None, drafted: int, target: Path, tmp_path: Path
) -> None:
    keys = {} if from_anchor is None else {"sample_from_anchor": from_anchor}
    config = deepspec(block_size=7, **keys)
    checkpoint = save(tmp_path / "dspark", config, dspark_tensors(config))
    gguf_file = convert(checkpoint, target, tmp_path / "dspark.gguf", "f32")[1]
    for path in (checkpoint, gguf_file):
        assert inspect(path).holds["block"] == f"7 tokens, anchor included: {drafted} drafted"


def test_a_drafter_that_cannot_be_had_takes_nothing_from_the_report_on_others(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", Mock(side_effect=OfflineModeIsEnabled("offline")))
    assert main(["--check", "no-org/no-drafter", str(checkpoint)]) == 1
    out = capsys.readouterr().out
    assert "wrong: no-org/no-drafter: not in the cache" in out and out.rstrip().endswith("nothing is odd")


def test_several_are_checked_and_one_that_is_wrong_sets_the_status(
    checkpoint: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(made.read_bytes()[:5000])
    assert main(["--check", str(checkpoint), str(bad), str(tmp_path / "none")]) == 1
    out = capsys.readouterr().out
    assert "wrong: " in out and "truncated" in out and f"{tmp_path / 'none'}: no such file" in out
    assert out.count("->") == 2


def test_another_target_is_wrong_and_both_numbers_are_shown(
    checkpoint: Path, made: Path, eagle3: Path, tmp_path: Path
) -> None:
    wide = LoadedTarget(make_target(tmp_path / "wide", hidden_size=96))
    short = LoadedTarget(make_target(tmp_path / "short", num_hidden_layers=4))
    for path in (checkpoint, made):
        report = inspect(path, wide)
        assert report.expects["hidden size"] == ("64", "96")
        assert "hidden size 96 need (64, 288)" in wrong(report)
        assert "taps the input of layer 6" in wrong(inspect(path, short))
    assert not inspect(eagle3, wide).good


def test_another_tokenizer_is_wrong(made: Path, target: Path, tmp_path: Path) -> None:
    tokens = gguf.GGUFReader(made).fields["tokenizer.ggml.tokens"].contents()
    tokens[7] = "other"
    other = rewrite(made, tmp_path / "other.gguf", keys={"tokenizer.ggml.tokens": tokens})
    assert "320 and 320 tokens, 1 differ, the first at 7: b'other'" in wrong(inspect(other, LoadedTarget(target)))
    assert inspect(other).good


def test_old_files_are_wrong_as_they_are_and_it_says_what_writes_them_anew(target: Path, tmp_path: Path) -> None:
    old = write_old(
        tmp_path / "old.gguf", "dflash-draft", dflash_config(), dflash_tensors(dflash_config()), names=BUUN,
        keys={"dflash.block_size": 8, "dflash.mask_token_id": MASK, "dflash.target_layer_ids": [0, 2, 5]},
    )  # fmt: skip
    report = inspect(old)
    assert not report.good and all("convert-dflash" in o.todo for o in report.oddities if o.wrong)
    assert "no tokenizer in the file" in wrong(report)


def test_a_target_is_no_drafter(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "model.gguf"
    other.write_bytes(made.read_bytes().replace(b"\x06\0\0\0\0\0\0\0dflash", b"\x06\0\0\0\0\0\0\0qwen35", 1))
    assert "general.architecture is qwen35" in wrong(inspect(other))


def changed(source: Path, path: Path, tensors: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]]) -> Path:
    """A copy with other tensors (bytes and type)."""
    rewrite(source, path, drop=tuple(tensors))
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_suffix(".tmp"), reader.fields["general.architecture"].contents())
    for f in reader.fields.values():
        if f.name[:5] != "GGUF." and f.name != "general.architecture":
            writer.add_key_value(f.name, f.contents(), f.types[0], f.types[-1] if len(f.types) > 1 else None)
    for t in reader.tensors:
        writer.add_tensor(t.name, np.ascontiguousarray(t.data), raw_dtype=t.tensor_type)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_suffix(".tmp").rename(path)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (np.arange(128) // 2, "holds offsets"),
        (np.arange(128) + 300, "names the tokens 300 to 427, the tokenizer has 320"),
        (np.arange(128) - 1, "names the tokens -1 to 126"),
    ],
)
def test_a_table_of_drafted_tokens_that_llama_cpp_would_misread(
    ids: np.ndarray, said: str, eagle3: Path, tmp_path: Path
) -> None:
    assert inspect(eagle3).good
    path = changed(eagle3, tmp_path / "x.gguf", {"d2t": (ids.astype(np.int64), gguf.GGMLQuantizationType.I64)})
    assert said in wrong(inspect(path))


def test_a_coarse_fc_is_odd_and_a_norm_that_is_not_f32_wrong(made: Path, tmp_path: Path) -> None:
    kinds = gguf.GGMLQuantizationType
    coarse = gguf.quants.quantize(np.ones((64, 192), dtype=np.float32), kinds.Q4_0)
    path = changed(made, tmp_path / "x.gguf", {"fc.weight": (coarse, kinds.Q4_0)})
    report = inspect(path)
    assert report.good and "fc.weight is stored in Q4_0" in report.oddities[0].what
    path = changed(made, tmp_path / "y.gguf", {"output_norm.weight": (np.ones(64, dtype=np.float16), kinds.F16)})
    assert "output_norm.weight is stored in F16" in wrong(inspect(path))


def test_numbers_that_no_weight_may_be_are_wrong(made: Path, tmp_path: Path) -> None:
    tensors = dflash_tensors(dflash_config())
    tensors["layers.1.mlp.up_proj.weight"][90, 60] = float("nan")
    report = inspect(save(tmp_path / "nan", dflash_config(), tensors))
    assert f"layers.1.mlp.up_proj.weight holds nan (element {90 * 64 + 60} of {96 * 64})" in wrong(report)
    norm = np.ones(64, dtype=np.float32)
    norm[63] = np.inf
    path = changed(made, tmp_path / "x.gguf", {"output_norm.weight": (norm, gguf.GGMLQuantizationType.F32)})
    assert "output_norm.weight holds inf (element 63 of 64)" in wrong(inspect(path))


def test_tensors_that_overlap_are_wrong(made: Path, tmp_path: Path) -> None:
    """All at the start of the data: nothing is read past the end, but nothing is right either."""
    data = bytearray(made.read_bytes())
    for t in gguf.GGUFReader(made).tensors:
        field = t.field
        at = field.offset + sum(len(part.tobytes()) for part in field.parts[:-1])
        data[at : at + 8] = bytes(8)
    (tmp_path / "x.gguf").write_bytes(data[: len(data) // 2])
    assert "they overlap" in wrong(inspect(tmp_path / "x.gguf"))


def test_nothing_in_a_file_reaches_the_terminal_as_it_is(made: Path, tmp_path: Path) -> None:
    name = "\x1b]0;owned\x07\nnothing is odd\u202e" + "x" * 5000
    shown = str(inspect(rewrite(made, tmp_path / "x.gguf", keys={"general.name": name})))
    assert shown.replace("\n", "").isprintable() and "\\x1b]0;owned\\x07 nothing" in shown
    assert max(map(len, shown.splitlines())) < 500


def test_nor_does_it_when_it_is_refused(tmp_path: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "d", dflash_config(architectures=["\ud800\x1b[31m"]), dflash_tensors(dflash_config()))
    assert main([str(path), "--target", str(target)]) == 1
    said = capsys.readouterr().err
    assert said.replace("\n", "").isprintable() and "\\ud800\\x1b[31m" in said


def test_a_target_is_needed_to_convert_but_not_to_check(checkpoint: Path) -> None:
    with pytest.raises(SystemExit) as e:
        main([str(checkpoint)])
    assert e.value.code == 2
