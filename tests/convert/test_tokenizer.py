"""Tokenizers: named by their pre-tokenizer where upstream's hash fails, exported without torch and weights, copied."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
from checkpoints import MASK, QWEN2, VOCAB, dflash_config, dflash_tensors, make_target, make_tokenizer, save, write_json
from dflash_convert import pretokenizer
from dflash_convert.cli import convert
from dflash_convert.gguf_file import read_gguf
from dflash_convert.pretokenizer import KNOWN, name_from_tokenizer_json, read_pretokenizer
from dflash_convert.upstream import convert_target, export_tokenizer
from dflash_tools.errors import UserError
from test_oracle import contents


def tokenizer_json(regexes: tuple[str, ...], ignore_merges: bool = False) -> dict[str, Any]:
    split = [{"type": "Split", "pattern": {"Regex": r}, "behavior": "Isolated", "invert": False} for r in regexes]
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "model": {"type": "BPE", "ignore_merges": ignore_merges},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*split, last]},
    }


@pytest.mark.parametrize(("signature", "name"), KNOWN.items(), ids=KNOWN.values())
def test_every_known_pretokenizer_is_named(signature: tuple[tuple[str, ...], bool], name: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    write_json(path, tokenizer_json(*signature))
    assert name_from_tokenizer_json(path) == name


@pytest.mark.parametrize(("signature", "name"), KNOWN.items(), ids=KNOWN.values())
def test_known_regexes_are_those_that_llama_cpp_runs(
    signature: tuple[tuple[str, ...], bool], name: str, llama_cpp: Path
) -> None:
    """Each regex stands in the C++ source, as code or as the original that the code adapts."""
    source = (llama_cpp / "src" / "llama-vocab.cpp").read_text(encoding="utf-8")
    assert f'tokenizer_pre == "{name}"' in source
    literals = {pretokenizer._canonical(_unescape(m)) for m in re.findall(r'"((?:[^"\\\n]|\\.)*)"', source)}
    for regex in signature[0]:
        assert regex in literals, regex


def _unescape(literal: str) -> str:
    return re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), literal)


def test_gpt2_and_digits_are_known_by_their_own_steps() -> None:
    byte_level = {"type": "ByteLevel"}
    digits = {"type": "Digits", "individual_digits": True}
    model = {"type": "BPE"}
    gpt2 = read_pretokenizer({"model": model, "pre_tokenizer": byte_level})
    smollm = read_pretokenizer(
        {"model": model, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]}}
    )
    assert gpt2 and KNOWN[gpt2.regexes, False] == "gpt-2"
    assert smollm and KNOWN[smollm.regexes, False] == "smollm"


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {"model": {"type": "Unigram"}, "pre_tokenizer": {"type": "Metaspace"}},
        {"model": {"type": "BPE"}, "pre_tokenizer": None},
        {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": 3}},
        {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Whitespace"}},
        {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}}},
        tokenizer_json((QWEN2,), ignore_merges=True),
        tokenizer_json((QWEN2, QWEN2)),
    ],
)
def test_other_pretokenizers_are_refused(data: Any, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    write_json(path, data)
    with pytest.raises(UserError, match="has no name for this pre-tokenizer"):
        name_from_tokenizer_json(path)


@pytest.mark.parametrize(("regex", "pre"), [(None, "gpt-2"), (pretokenizer.QWEN35, "qwen35")])
def test_export_names_the_fallback_and_keeps_special_tokens(
    regex: str | None, pre: str, tmp_path: Path, llama_cpp: Path
) -> None:
    target = make_target(tmp_path / "t")
    make_tokenizer(target, regex)
    found = read_gguf(export_tokenizer(target, llama_cpp=llama_cpp))
    assert found.string("tokenizer.ggml.pre") == pre
    tokens = [t.decode() for t in found.metadata["tokenizer.ggml.tokens"].value]
    assert len(tokens) == VOCAB
    assert tokens[found.integer("tokenizer.ggml.eos_token_id")] == "<|im_end|>"
    assert "<|im_start|>" in found.string("tokenizer.chat_template")
    assert set(found.metadata) == {k for k in found.metadata if k.startswith("tokenizer.")} | {"general.architecture"}


def test_bos_is_stated_where_the_pretokenizer_would_add_one(tmp_path: Path, llama_cpp: Path) -> None:
    """llama.cpp adds BOS for `llama-bpe` by default; this tokenizer does not."""
    target = make_target(tmp_path / "t", architecture="LlamaForCausalLM")
    make_tokenizer(target, pretokenizer.LLAMA3)
    data = json.loads((target / "tokenizer.json").read_text())
    data["model"]["ignore_merges"] = True
    write_json(target / "tokenizer.json", data)
    found = read_gguf(export_tokenizer(target, llama_cpp=llama_cpp))
    assert found.string("tokenizer.ggml.pre") == "llama-bpe"
    assert found.metadata["tokenizer.ggml.add_bos_token"].value is False


def test_target_whose_rules_upstream_cannot_borrow_converts(tmp_path: Path, llama_cpp: Path) -> None:
    """Upstream's DFlash class calls the target class's method on itself, which fails for Qwen3-MoE (`super()`)."""
    target = make_target(tmp_path / "t", architecture="Qwen3MoeForCausalLM", model_type="qwen3_moe", num_experts=4)
    drafter = save(tmp_path / "d", dflash_config(), dflash_tensors(dflash_config()))
    convert(drafter, target, tmp_path / "d.gguf", llama_cpp=llama_cpp)
    assert gguf.GGUFReader(tmp_path / "d.gguf").fields["tokenizer.ggml.pre"].contents() == "qwen2"


def test_code_in_the_target_is_never_run(tmp_path: Path, llama_cpp: Path) -> None:
    target = make_target(tmp_path / "t", architecture="LlamaForCausalLM")
    config = json.loads((target / "tokenizer_config.json").read_text())
    # for this class upstream asks for the directory's own code
    config |= {"tokenizer_class": "HybridDNATokenizer", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    write_json(target / "tokenizer_config.json", config)
    (target / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n", encoding="utf-8")
    with pytest.raises(UserError, match="could not read the tokenizer"):
        export_tokenizer(target, llama_cpp=llama_cpp)
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def gguf_target(tmp_path_factory: pytest.TempPathFactory, llama_cpp: Path) -> tuple[Path, Path]:
    """A target with weights as HF directory and as upstream's GGUF."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("gguf")
    target = make_target(root / "t")
    config = Qwen3Config(**json.loads((target / "config.json").read_text()))
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(target)
    return target, convert_target(target, root / "t.gguf", "bf16", llama_cpp=llama_cpp)


def test_converted_target_names_the_pretokenizer(gguf_target: tuple[Path, Path]) -> None:
    reader = gguf.GGUFReader(gguf_target[1])
    assert reader.fields["tokenizer.ggml.pre"].contents() == "qwen2"
    assert not list(gguf_target[1].parent.glob(".*"))


def test_gguf_target_gives_the_same_drafter_as_its_directory(
    gguf_target: tuple[Path, Path], tmp_path: Path, llama_cpp: Path
) -> None:
    drafter = save(tmp_path / "d", dflash_config(), dflash_tensors(dflash_config()))
    files = []
    for i, target in enumerate(gguf_target):
        files.append(tmp_path / f"{i}.gguf")
        convert(drafter, target, files[-1], llama_cpp=llama_cpp)
    a, b = (contents(f) for f in files)
    assert a == b
    assert a["tokenizer.ggml.mask_token_id"][1] == MASK


def test_gguf_target_that_does_not_fit_is_refused(gguf_target: tuple[Path, Path], tmp_path: Path) -> None:
    config = dflash_config(dflash_config={"mask_token_id": MASK, "target_layer_ids": [1, 2, 30]})
    drafter = save(tmp_path / "d", config, dflash_tensors(config))
    with pytest.raises(UserError, match="has 8 layers"):
        convert(drafter, gguf_target[1], tmp_path / "o.gguf")
    own = tmp_path / "drafter.gguf"
    config = dflash_config()
    convert(save(tmp_path / "d2", config, dflash_tensors(config)), gguf_target[1], own)
    with pytest.raises(UserError, match="this is a drafter"):
        convert(tmp_path / "d2", own, tmp_path / "o.gguf")


@pytest.mark.parametrize("cut", [3, 10, 23, 100, 2000, -5000])
def test_truncated_gguf_target_is_refused(cut: int, gguf_target: tuple[Path, Path], tmp_path: Path) -> None:
    short = tmp_path / "t.gguf"
    short.write_bytes(gguf_target[1].read_bytes()[:cut])
    drafter = save(tmp_path / "d", dflash_config(), dflash_tensors(dflash_config()))
    with pytest.raises(UserError, match=r"t\.gguf: (truncated|damaged)"):
        convert(drafter, short, tmp_path / "o.gguf")


def test_embedding_and_head_of_the_target_are_left_out(
    gguf_target: tuple[Path, Path], tmp_path: Path, llama_cpp: Path
) -> None:
    from safetensors.torch import load_file

    weights = load_file(gguf_target[0] / "model.safetensors")
    same = {"embed_tokens.weight": weights["model.embed_tokens.weight"], "lm_head.weight": weights["lm_head.weight"]}
    other = {n: t.clone() for n, t in same.items()}
    other["lm_head.weight"][-1, -1] += 1
    base = dflash_tensors(dflash_config())
    cases = {
        "both": (same, set()),
        "other head": (other, {"output.weight"}),
        "head alone": ({"lm_head.weight": other["lm_head.weight"]}, {"output.weight"}),
        "same head alone": ({"lm_head.weight": same["lm_head.weight"]}, set()),
        "same embeddings alone": ({"embed_tokens.weight": same["embed_tokens.weight"]}, set()),
    }
    for name, (own, kept) in cases.items():
        drafter = save(tmp_path / name, dflash_config(), {**base, **own})
        for target in gguf_target:
            convert(drafter, target, tmp_path / "o.gguf", llama_cpp=llama_cpp)
            found = {t.name for t in gguf.GGUFReader(tmp_path / "o.gguf").tensors}
            assert found & {"token_embd.weight", "output.weight"} == kept, (name, target)


def test_lone_embeddings_that_are_not_the_targets_are_refused(gguf_target: tuple[Path, Path], tmp_path: Path) -> None:
    drafter = save(tmp_path / "d", dflash_config(), dflash_tensors(dflash_config(), own=("embed_tokens",)))
    for target in (gguf_target[1], make_target(tmp_path / "no weights")):
        with pytest.raises(UserError, match=r"embed_tokens\.weight without lm_head\.weight"):
            convert(drafter, target, tmp_path / "o.gguf")


def test_hybrid_target_without_mtp_tensors_converts(tmp_path: Path, llama_cpp: Path) -> None:
    """Upstream asserts for Qwen3.5 checkpoints without an MTP block unless it is told so."""
    import torch
    from test_oracle import QWEN35
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    target = make_target(tmp_path / "t", **QWEN35)
    config = Qwen3_5TextConfig(**json.loads((target / "config.json").read_text()))
    Qwen3_5ForCausalLM(config).to(torch.bfloat16).save_pretrained(target)
    out = convert_target(target, tmp_path / "t.gguf", "f16", llama_cpp=llama_cpp)
    fields = gguf.GGUFReader(out).fields
    assert fields["qwen35.block_count"].contents() == 8
    drafter = save(tmp_path / "d", dflash_config(), dflash_tensors(dflash_config()))
    convert(drafter, out, tmp_path / "d.gguf", llama_cpp=llama_cpp)
    sections = gguf.GGUFReader(tmp_path / "d.gguf").fields["dflash.rope.dimension_sections"].contents()
    assert sections == [16, 0, 0, 0]


def test_failed_target_conversion_says_why_and_leaves_nothing(tmp_path: Path, llama_cpp: Path) -> None:
    target = make_target(tmp_path / "t")
    with pytest.raises(UserError, match="no weights here"):
        convert_target(target, tmp_path / "o.gguf", llama_cpp=llama_cpp)
    (target / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0[]")
    with pytest.raises(UserError, match="could not convert"):
        convert_target(target, tmp_path / "o.gguf", llama_cpp=llama_cpp)
    with pytest.raises(UserError, match="is not one of"):
        convert_target(target, tmp_path / "o.gguf", "q4_k", llama_cpp=llama_cpp)
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
