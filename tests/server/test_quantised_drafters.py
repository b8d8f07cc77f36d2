"""`convert-dflash --outtype q4_k_m` and its like: what the file holds, and that it drafts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from dflash_convert import quantiser
from dflash_convert.conversion import LoadedTarget, convert
from dflash_convert.gguf_file import read_gguf
from dflash_tools.server import LlamaServer
from dflash_tools.tiny import CHECKOUT
from serving import COMMON, EXACT, LAYOUTS, Request, assert_same

sys.path.append(str(CHECKOUT / "tests" / "convert"))
from checkpoints import dflash_config, dflash_tensors, make_target, save


@pytest.fixture(autouse=True)
def this_build(bin_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantiser, "bin_dir", lambda: bin_dir)


@pytest.mark.parametrize("outtype", ["q4_k_m", "q4_0"])
def test_it_drafts_and_the_text_is_the_targets(pair, outtype, serving, prompt, tiny_gguf, bin_dir, tmp_path):
    target = tiny_gguf(pair.family, "target")
    drafter, file, _ = convert(pair.drafter, target, tmp_path / "d.gguf", outtype)
    assert [p.name for p in tmp_path.iterdir()] == ["d.gguf"]
    plain = serving.plain(pair)
    steps = tokens = 0
    extra = (*COMMON, *EXACT, *LAYOUTS[1])
    with LlamaServer(
        bin_dir, target, file, switch=pair.switch, extra=extra, log=tmp_path / "log", timeout=120.0
    ) as drafted:
        for start in (0, 5, 10):
            request = Request(prompt(pair, 40, start), {"n_predict": 64, "ignore_eos": True})
            found = request.send(drafted)
            assert_same(plain, request, request.send(plain), found)
            tokens += found.timings.predicted_n
            steps += found.timings.predicted_n - found.timings.draft_n_accepted
    assert tokens / steps > (2 if pair.engine == "eagle3" else 2.5), "the drafter has lost what it knew"
    assert any(note.startswith("matrices: ") for note in drafter.notes)


def test_keys_and_fine_tensors_are_kept(pair, tiny_gguf, tmp_path):
    loaded = LoadedTarget(tiny_gguf(pair.family, "target"))
    plain = read_gguf(convert(pair.drafter, loaded, tmp_path / "plain.gguf", "bf16")[1])
    made = read_gguf(convert(pair.drafter, loaded, tmp_path / "made.gguf", "q4_k_m")[1])
    changed = {"general.file_type"}
    assert {k: v for k, v in made.metadata.items() if k not in changed} == {
        k: v for k, v in plain.metadata.items() if k not in changed
    }
    types = {n: t.type.name for n, t in made.tensors.items()}
    assert {n: t.shape for n, t in made.tensors.items()} == {n: t.shape for n, t in plain.tensors.items()}
    assert types["fc.weight"] == "Q8_0"
    assert {kind for n, kind in types.items() if n.endswith("_norm.weight")} == {"F32"}
    assert "Q4_K" in types.values() and types.get("d2t", "I64") == "I64"


def test_shards_and_rows_that_k_quants_cannot_cut(tiny_gguf, tmp_path):
    target = make_target(tmp_path / "t")
    source = save(tmp_path / "d", dflash_config(), dflash_tensors(dflash_config()), shards=3)
    drafter, file, _ = convert(source, target, tmp_path / "o.gguf", "q5_k_m")
    assert {t.type.name for n, t in read_gguf(file).tensors.items() if n.endswith("ffn_up.weight")} == {"Q5_1"}
    note = next(n for n in drafter.notes if n.startswith("matrices: "))
    assert "rows of 64 are no multiple of 256, so those are in" in note and "rows of 96" in note
