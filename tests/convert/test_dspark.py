"""DSpark of every producer: against llama.cpp's own converter where it is right, else by what the file must hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import MASK, VOCAB, Tensors, make_target, save
from dflash_checkpoints import biased
from dflash_convert.cli import convert
from dflash_tools.errors import UserError
from dspark_checkpoints import (
    DRAFT_VOCAB,
    HEADS,
    OWN,
    RANK,
    TAPS,
    deepspec,
    dspark_tensors,
    gemma4,
    gemma4_tensors,
    specforge,
    speculators,
)
from test_oracle import LLAMA3, QWEN35, SAID, SLIDING, YARN, assert_same_file, contents, run_upstream

Config = dict[str, Any]
HEAD = {
    "output.weight": "upstream drops the head of a full vocabulary, and the embeddings become it",
    "general.size_label": "counts it",
}
ZEROS = {
    f"markov_{w}.weight": "without a Markov head llama.cpp takes the file for a DFlash and reads the wrong slots"
    for w in ("w1", "w2")
}
PATTERN = {"dflash.attention.causal_pattern": "sliding layers are causal; upstream has one flag for all layers"}
NO_MARKOV = {"markov_rank": 0, "markov_head_type": None, "enable_confidence_head": False}


def raw_gemma4(**overrides: Any) -> Config:
    """Without the model type, by which transformers 5.23 would rearrange the keys that upstream's converter reads."""
    return gemma4(model_type=None, **overrides)


@dataclass
class Case:
    """`differs`: keys and tensors that differ on purpose, with the reason; `fails`: how upstream's converter ends."""

    config: Config
    own: tuple[str, ...] = ()
    target: Config = field(default_factory=dict)
    outtype: str = "bf16"
    edit: Callable[[Tensors], Tensors] = lambda tensors: tensors
    differs: dict[str, str] = field(default_factory=dict)
    fails: str | None = None


def _prefixed(tensors: Tensors) -> Tensors:
    return {f"model.{n}": t for n, t in tensors.items()}


CASES: dict[str, Case] = {
    "deepspec": Case(deepspec(), OWN, differs=HEAD),
    "deepspec, f32": Case(deepspec(), OWN, outtype="f32", differs=HEAD),
    "deepspec, q8_0": Case(deepspec(markov_rank=64), OWN, outtype="q8_0", differs=HEAD),
    "deepspec, f16 without copies": Case(deepspec(), outtype="f16"),
    "deepspec, no Markov head": Case(deepspec(**NO_MARKOV), OWN, differs=HEAD | ZEROS),
    "deepspec, embedding output tapped": Case(deepspec(target_layer_ids=[-1, 3])),
    "deepspec, m-rope target": Case(deepspec(), target=QWEN35),
    "deepspec, no confidence head": Case(deepspec(enable_confidence_head=False)),
    "deepspec, unbiased confidence head": Case(
        deepspec(), edit=lambda t: {n: x for n, x in t.items() if n != "confidence_head.proj.bias"}
    ),
    "deepspec, bonus anchor": Case(deepspec(sample_from_anchor=False)),
    "lfm2": Case(deepspec(architectures=["Lfm2DSparkDraftModel"])),
    "ling": Case(deepspec(architectures=["LingDSparkModel"])),
    "flat, ids of inputs": Case(
        deepspec(target_layer_ids=None, aux_hidden_state_layer_ids=[i + 1 for i in TAPS],
                 architectures=["DSparkDraftModel"])
    ),
    "flat, reduced vocabulary": Case(deepspec(draft_vocab_size=DRAFT_VOCAB)),
    "specforge": Case(specforge()),
    "specforge, model prefix": Case(specforge(), edit=_prefixed),
    "specforge, no Markov head": Case(specforge({"markov_rank": 0, "enable_confidence_head": False}), differs=ZEROS),
    "specforge, yarn, both sections": Case(
        specforge(rope_scaling={**YARN, "factor": 32.0}, dspark_config=HEADS, mask_token_id=MASK)
    ),
    "specforge, llama3 rope": Case(
        specforge(rope_scaling=LLAMA3), differs={"rope_freqs.weight": "upstream drops llama3 scaling of a drafter"}
    ),
    "specforge, sliding": Case(specforge(**SLIDING), differs=PATTERN),
    "specforge, scaled and capped logits": Case(specforge({"output_multiplier": 0.5, "final_logit_softcapping": 20.0})),
    "keys in dspark_config alone": Case(
        specforge(dflash_config=None, dspark_config={"mask_token_id": MASK, "target_layer_ids": TAPS, **HEADS}),
        differs={
            "dflash.target_layers": "upstream does not look into dspark_config; its file does not load",
            "tokenizer.ggml.mask_token_id": "likewise; without it llama.cpp aborts at the first draft",
        },
    ),
    "gemma4": Case(raw_gemma4(), OWN),
    "gemma4, as published": Case(gemma4(), OWN, fails="KeyError: 'global_head_dim'"),
    "gemma4, q8_0": Case(raw_gemma4(markov_rank=64), OWN, outtype="q8_0"),
    "gemma4, own head": Case(raw_gemma4(), ("lm_head",)),
    "gemma4, tied": Case(raw_gemma4(tie_word_embeddings=True), ("embed_tokens",)),
    "gemma4, no confidence head": Case(raw_gemma4(enable_confidence_head=False), OWN),
    "gemma4, no Markov head": Case(raw_gemma4(**NO_MARKOV), OWN, differs=ZEROS),
    "gemma4, default rope": Case(raw_gemma4(rope_parameters={"rope_type": "default", "rope_theta": 1e4}), OWN),
    "gemma4, rope unsaid": Case(raw_gemma4(rope_parameters=None), OWN),
    "gemma4 of ModelOpt, windows": Case(
        raw_gemma4(
            target_layer_ids=None, mask_token_id=None, markov_rank=None, markov_head_type=None,
            dflash_config={"target_layer_ids": TAPS, "mask_token_id": MASK, "use_swa": True, "swa_window_size": 64,
                           "markov_rank": RANK, "markov_head_type": "vanilla"},
        ),
        OWN,
        edit=lambda t: {n.replace("confidence_head.proj", "confidence_proj"): x for n, x in t.items()},
        differs=SAID,
    ),
    "gemma4, logits capped": Case(
        raw_gemma4(**NO_MARKOV, final_logit_softcapping=30.0), OWN, fails="logit softcapping is not supported"
    ),
    "speculators": Case(speculators()),
    "speculators, older name": Case(speculators(architectures=["DSparkSpeculator"])),
    "speculators, bonus anchor": Case(speculators(sample_from_anchor=False)),
    "speculators, of before 0.9": Case(speculators(sample_from_anchor=None)),
    "speculators, full vocabulary": Case(speculators(draft_vocab_size=VOCAB)),
    "speculators, final state tapped": Case(
        speculators(aux_hidden_state_layer_ids=[1, 4, 8]), target={"architecture": "MiMoV2FlashForCausalLM"}
    ),
    "speculators, yarn": Case(speculators(rope_scaling=YARN)),
    "speculators, sliding": Case(speculators(**SLIDING), differs=PATTERN),
    "speculators, sliding, not causal": Case(
        speculators(**SLIDING, sliding_window_non_causal=True), differs=SAID
    ),
    "speculators, no heads": Case(
        speculators(markov_rank=0, enable_confidence_head=False, confidence_head_with_markov=False),
        differs=ZEROS | {"general.size_label": "counts them"},
    ),
    "speculators, no heads, bonus anchor": Case(
        speculators(markov_rank=0, enable_confidence_head=False, confidence_head_with_markov=False,
                    sample_from_anchor=False)
    ),
    "speculators, confidence without Markov embedding": Case(speculators(confidence_head_with_markov=False)),
    "speculators, biases": Case(speculators(attention_bias=True), edit=biased),
    "speculators, gelu": Case(
        speculators(hidden_act="gelu_pytorch_tanh"),
        differs={"dflash.hidden_activation": "upstream writes none and llama.cpp would run silu"},
    ),
    "speculators, type null": Case(
        speculators() | {"markov_head_type": None}, fails="unsupported markov_head_type None"
    ),
    "speculators, ids null": Case(
        speculators() | {"aux_hidden_state_layer_ids": None}, fails="'NoneType' object is not iterable"
    ),
}  # fmt: skip


# rows of the table of formats, and what a case shows of upstream's converter
ROWS = {
    "deepspec": ("DSpark (DeepSpec)", "its file lacks the head of untied targets"),
    "deepspec, f32": ("DSpark (DeepSpec), weights that are not the target's", "its file lacks the head"),
    "deepspec, no Markov head": ("DFlash (DeepSpec: markov_rank 0)", "its file is read one slot off"),
    "specforge": ("DSpark (SpecForge)", "equal"),
    "specforge, yarn, both sections": ("DSpark (SpecForge), yarn", "equal"),
    "specforge, llama3 rope": ("DSpark (SpecForge), llama3 rope", "its file lacks the scaling"),
    "keys in dspark_config alone": ("DSpark (SpecForge), dspark_config", "its file lacks taps and mask token"),
    "speculators": ("DSpark (speculators)", "equal"),
    "speculators, bonus anchor": ("DSpark (speculators), bonus anchor", "equal"),
    "speculators, sliding": (
        "DSpark (speculators), sliding and full layers", "its file lacks the causality of sliding layers"
    ),
    "gemma4, as published": ("DSpark (DeepSpec), Gemma 4 layers", "converter fails: KeyError: 'global_head_dim'"),
    "speculators, gelu": ("DSpark (speculators), gelu", "its file lacks the activation"),
    "speculators, biases": ("DSpark (speculators), attention biases", "the same file; not loaded"),
    "speculators, confidence without Markov embedding": (
        "DSpark (speculators), confidence of the state alone", "the same file; not loaded"
    ),
    "gemma4, logits capped": (
        "DSpark (DeepSpec), Gemma 4 layers and capped logits", "converter fails: logit softcapping is not supported"
    ),
}  # fmt: skip


def _of_table(name: str) -> Any:
    family = [pytest.mark.family(ROWS[name][0], converts="yes", upstream=ROWS[name][1])] if name in ROWS else []
    return pytest.param(name, marks=family)


@dataclass
class Pair:
    drafter: Path
    target: Path
    ours: Path
    theirs: Path
    error: str | None


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, llama_cpp: Path) -> dict[str, Pair]:
    """The checkpoint of every case, and what upstream makes of all of them in one process."""
    root = tmp_path_factory.mktemp("dspark")
    targets: dict[str, Path] = {}
    found, jobs = {}, []
    for i, (name, case) in enumerate(CASES.items()):
        key = str(case.target)
        if key not in targets:
            targets[key] = make_target(root / f"target{len(targets)}", **case.target)
        directory = root / f"{i}" / "Some-Drafter-0.1B"
        make = gemma4_tensors if case.config["architectures"] == ["Gemma4DSparkModel"] else dspark_tensors
        save(directory, case.config, case.edit(make(case.config, i, case.own)))
        found[name] = Pair(directory, targets[key], root / f"ours-{i}.gguf", root / f"theirs-{i}.gguf", None)
        jobs.append(["qwen2", str(directory), "--target-model-dir", str(targets[key]),
                     "--outfile", str(found[name].theirs), "--outtype", case.outtype])  # fmt: skip
    for pair, error in zip(found.values(), run_upstream(llama_cpp, jobs, root), strict=True):
        pair.error = error
    return found


@pytest.mark.parametrize("name", map(_of_table, CASES))
def test_file_equals_that_of_upstreams_converter(name: str, pairs: dict[str, Pair], llama_cpp: Path) -> None:
    case, pair = CASES[name], pairs[name]
    convert(pair.drafter, pair.target, pair.ours, case.outtype, llama_cpp=llama_cpp)
    if case.fails is None:
        assert pair.error is None
        assert_same_file(pair.ours, pair.theirs, case.differs)
    else:
        assert case.fails in (pair.error or "it works now")


def test_oracle_runs_all_producers() -> None:
    assert {n for c in CASES.values() for n in c.config["architectures"]} >= {
        "Qwen3DSparkModel", "DSparkDraftModel", "DSparkSpeculator", "Lfm2DSparkDraftModel", "LingDSparkModel",
        "Gemma4DSparkModel",
    }  # fmt: skip


def _written(tmp_path: Path, target: Path, config: Config, tensors: Tensors) -> tuple[Any, dict[str, Any]]:
    description, file, _ = convert(save(tmp_path / "hf", config, tensors), target, tmp_path / "out.gguf", "f32")
    return description, contents(file)


def test_copies_of_an_untied_target_are_left_out(tmp_path: Path) -> None:
    config = deepspec()
    tensors = dspark_tensors(config, own=OWN)
    target = make_target(tmp_path / "target")
    save_of_target = {f"{'model.' if n == 'embed_tokens' else ''}{n}.weight": tensors[f"{n}.weight"] for n in OWN}
    save(target, _config_of(target), save_of_target)
    description, file = _written(tmp_path, target, config, tensors)
    assert not {"token_embd.weight", "output.weight"} & file.keys()
    assert any("target's own: left out" in n for n in description.notes)


def test_a_head_that_differs_from_that_of_an_untied_target_is_kept(tmp_path: Path) -> None:
    config = deepspec()
    tensors = dspark_tensors(config, own=OWN)
    target = make_target(tmp_path / "target")
    other = {"model.embed_tokens.weight": tensors["embed_tokens.weight"], "lm_head.weight": -tensors["lm_head.weight"]}
    save(target, _config_of(target), other)
    _, file = _written(tmp_path, target, config, tensors)
    head = np.frombuffer(file["output.weight"][2], np.float32).reshape(VOCAB, -1)
    assert np.array_equal(head, tensors["lm_head.weight"].to(torch.bfloat16).float().numpy())


def _config_of(target: Path) -> Config:
    return json.loads((target / "config.json").read_text())


def test_no_markov_head_becomes_one_of_zeros(tmp_path: Path) -> None:
    config = deepspec(**NO_MARKOV)
    description, file = _written(tmp_path, make_target(tmp_path / "t"), config, dspark_tensors(config))
    for name in ("markov_w1.weight", "markov_w2.weight"):
        kind, shape, data = file[name]
        assert (kind, shape) == ("F32", [1, VOCAB])
        assert not any(data)
    assert file["dflash.sample_from_anchor"][1] is True
    assert any("first slot drafts" in n for n in description.notes)


def test_a_confidence_head_without_markov_embedding_keeps_its_width(tmp_path: Path) -> None:
    config = speculators(markov_rank=0, confidence_head_with_markov=False, draft_vocab_size=VOCAB)
    description, file = _written(tmp_path, make_target(tmp_path / "t"), config, dspark_tensors(config))
    assert file["conf_proj.weight"][1] == [64, 1]
    assert file["markov_w1.weight"][1] == [1, VOCAB]
    assert any("upstream's llama.cpp does not yet" in n for n in description.notes)


def test_copies_that_speculators_does_not_read_are_left_out(tmp_path: Path) -> None:
    config = speculators(draft_vocab_size=VOCAB)
    tensors = dspark_tensors(config, own=OWN) | {"verifier_norm.weight": torch.ones(64)}
    tensors["verifier_lm_head.weight"] = tensors["lm_head.weight"].clone()
    _, file = _written(tmp_path, make_target(tmp_path / "t"), config, tensors)
    assert not {"token_embd.weight", "output.weight"} & file.keys()


def test_keys_beside_the_section_do_not_change_the_transformer(tmp_path: Path) -> None:
    config = speculators() | {"num_hidden_layers": 3, "hidden_size": 32, "model_type": "llama", "rope_theta": 1.0}
    description, file = _written(tmp_path, make_target(tmp_path / "t"), config, dspark_tensors(speculators()))
    assert (description.block_count, description.hidden_size) == (2, 64)
    assert file["dflash.rope.freq_base"][1] == 1e6


def test_what_a_section_leaves_out_is_the_default_of_its_model_type(tmp_path: Path) -> None:
    config = speculators()
    for key in ("rms_norm_eps", "rope_theta", "rope_scaling", "max_position_embeddings", "model_type"):
        config["transformer_layer_config"].pop(key)
    _, file = _written(tmp_path, make_target(tmp_path / "t"), config, dspark_tensors(config))
    found = {k: file[f"dflash.{k}"][1] for k in ("rope.freq_base", "context_length")}
    assert found == {"rope.freq_base": 1e4, "context_length": 32768}


@pytest.mark.parametrize("name", ["DFlashDraftModel", "DFlashSpeculator"])
def test_dflash_of_speculators_that_drafts_from_the_anchor_on_is_written_as_dspark(name: str, tmp_path: Path) -> None:
    config = speculators(architectures=[name], speculators_model_type="dflash", **dict.fromkeys(HEADS))
    config["speculators_config"]["algorithm"] = "dflash"
    _, file = _written(tmp_path, make_target(tmp_path / "t"), config, dspark_tensors(config))
    assert file["markov_w1.weight"][1] == [1, VOCAB]
    assert file["markov_w2.weight"][1] == [1, DRAFT_VOCAB]
    assert file["dflash.sample_from_anchor"][1] is True


@pytest.mark.parametrize("of_gemma4", [False, True])
def test_a_cap_on_logits_is_written_with_a_note(of_gemma4: bool, tmp_path: Path) -> None:
    config = gemma4(final_logit_softcapping=30.0) if of_gemma4 else deepspec(final_logit_softcapping=30.0)
    tensors = (gemma4_tensors if of_gemma4 else dspark_tensors)(config)
    description, file = _written(tmp_path, make_target(tmp_path / "t"), config, tensors)
    assert file["dflash.final_logit_softcapping"][1] == 30.0
    assert any("capped before the Markov bias" in n for n in description.notes)


def test_ids_left_out_of_a_nested_config_are_the_usual_inputs(tmp_path: Path) -> None:
    config = speculators(aux_hidden_state_layer_ids=None)
    description, file = _written(tmp_path, make_target(tmp_path / "t"), config, dspark_tensors(config))
    assert file["dflash.target_layers"][1] == [2, 4, 5]
    assert any("[2, 4, 5]" in n for n in description.notes)
    assert description.family == "DSpark"


def test_biases_of_the_attention_are_written(tmp_path: Path) -> None:
    config = speculators(attention_bias=True)
    tensors = dspark_tensors(config)
    for i in range(2):
        for name, rows in (("q", 128), ("k", 64), ("v", 64), ("o", 64)):
            tensors[f"layers.{i}.self_attn.{name}_proj.bias"] = torch.randn(rows)
    _, file = _written(tmp_path, make_target(tmp_path / "t"), config, tensors)
    assert {f"blk.{i}.attn_{n}.bias" for i in range(2) for n in ("q", "k", "v", "output")} <= file.keys()


REFUSALS: dict[str, tuple[Config, Callable[[Tensors], Tensors], tuple[str, ...]]] = {
    "gated head": (deepspec(markov_head_type="gated"), lambda t: t, ("markov_head_type is 'gated'", "vanilla")),
    "rnn head, nested": (
        specforge({"markov_head_type": "rnn"}), lambda t: t, ("dflash_config.markov_head_type is 'rnn'",),
    ),
    "gated head by its weights": (
        deepspec(),
        lambda t: t | {"markov_head.gate_proj.weight": torch.zeros(RANK, 64 + RANK)},
        ("weights are of a gated head", "vanilla"),
    ),
    "Markov head missing": (
        deepspec(),
        lambda t: {n: x for n, x in t.items() if "markov" not in n},
        ("missing: markov_head.markov_w1.weight (320, 16), markov_head.markov_w2.weight (320, 16)",),
    ),
    "rank of another checkpoint": (
        deepspec(markov_rank=8),
        lambda t: t,
        ("markov_head.markov_w2.weight is (320, 16), the config calls for (320, 8)",),
    ),
    "Markov head that the config denies": (
        deepspec(**NO_MARKOV, confidence_head_with_markov=None),
        lambda t: {n: x for n, x in t.items() if "confidence" not in n},
        ("not part of this family: markov_head.markov_w1.weight (320, 16)",),
    ),
    "confidence head missing": (
        deepspec(),
        lambda t: {n: x for n, x in t.items() if "confidence" not in n},
        ("missing: confidence_head.proj.weight (1, 80)",),
    ),
    "confidence head of another rank": (
        deepspec(),
        lambda t: t | {"confidence_head.proj.weight": torch.zeros(1, 70)},
        ("confidence_head.proj.weight is (1, 70), the config calls for (1, 80)",),
    ),
    "confidence head of a Markov head that is not there": (
        speculators(markov_rank=0, enable_confidence_head=False) | {"enable_confidence_head": True},
        lambda t: t,
        ("confidence_head_with_markov", "markov_rank is 0"),
    ),
    "rank that is no number": (deepspec(markov_rank="256"), lambda t: t, ('markov_rank is "256"', "whole number")),
    "rank that is too large": (deepspec(markov_rank=1 << 30), lambda t: t, ("markov_rank is 1073741824", "65536")),
    "no mask token": (deepspec(mask_token_id=None), lambda t: t, ("mask_token_id is missing",)),
    "no ids, flat": (deepspec(target_layer_ids=None), lambda t: t, ("target_layer_ids is missing",)),
    "layer that the target has not": (
        deepspec(target_layer_ids=[0, 2, 8]), lambda t: t, ("layer 9", "inputs 0 to 8"),
    ),
    "d2t missing": (speculators(), lambda t: {n: x for n, x in t.items() if n != "d2t"}, ("missing: d2t (192)",)),
    "d2t of absolute ids": (
        speculators(),
        lambda t: t | {"d2t": t["d2t"] + torch.arange(DRAFT_VOCAB)},
        ("d2t[i] + i must be 192 different target ids below 320",),
    ),
    "larger draft vocabulary": (speculators(draft_vocab_size=400), lambda t: t, ("400", "320 tokens")),
    "layers of another model type": (
        {**speculators(), "transformer_layer_config": {"model_type": "gpt_oss"}},
        lambda t: t,
        ("transformer_layer_config.model_type is 'gpt_oss'", "qwen3 and llama"),
    ),
    "section that is no object": (
        {**speculators(), "transformer_layer_config": [1]}, lambda t: t, ("transformer_layer_config is [1]", "object"),
    ),
}  # fmt: skip


GEMMA4_REFUSALS: dict[str, tuple[Config, tuple[str, ...]]] = {
    "values of their own": (gemma4(attention_k_eq_v=False), ("attention_k_eq_v is not true", "keys' projection")),
    "sliding layers": (gemma4(layer_types=["sliding_attention", "full_attention"]), ("full attention only",)),
    "experts": (gemma4(enable_moe_block=True), ("enable_moe_block is set", "experts")),
    "biases": (gemma4(attention_bias=True), ("attention_bias is set",)),
    "embeddings per layer": (gemma4(hidden_size_per_layer_input=256), ("hidden_size_per_layer_input is set",)),
    "another activation": (gemma4(hidden_activation="silu"), ("hidden_activation is not gelu_pytorch_tanh",)),
    "head size missing": (gemma4(global_head_dim=None), ("global_head_dim is missing",)),
    "key heads that do not divide": (gemma4(num_global_key_value_heads=3), ("is 3, which does not divide 4",)),
    "reduced vocabulary": (gemma4(draft_vocab_size=100), ("draft_vocab_size is 100",)),
    "yarn": (
        gemma4(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}), ("'yarn'", "proportional"),
    ),
    "share of a dimension": (
        gemma4(rope_parameters={"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.1}),
        ("partial_rotary_factor is 0.1", "32 dimensions"),
    ),
    "a cap that is no number": (gemma4(final_logit_softcapping="30"), ('final_logit_softcapping is "30"',)),
    "gated head": (gemma4(markov_head_type="gated"), ("vanilla",)),
    "larger layers": (gemma4(intermediate_size=128), ("mlp.up_proj.weight is (96, 64), the config calls for (128, ",)),
}  # fmt: skip


@pytest.mark.parametrize("name", GEMMA4_REFUSALS)
def test_gemma4_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    config, parts = GEMMA4_REFUSALS[name]
    _refused(tmp_path, config, gemma4_tensors(gemma4()), parts)


def test_proportional_rope_is_refused_for_targets_with_several_axes(tmp_path: Path) -> None:
    _refused(tmp_path, gemma4(), gemma4_tensors(gemma4()), ("M-RoPE", "proportional"), **QWEN35)


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    config, edit, parts = REFUSALS[name]
    base = speculators() if "transformer_layer_config" in config else deepspec()
    _refused(tmp_path, config, edit(dspark_tensors(base)), parts)


def _refused(tmp_path: Path, config: Config, tensors: Tensors, parts: tuple[str, ...], **target: Any) -> None:
    drafter = save(tmp_path / "drafter", config, tensors)
    with pytest.raises(UserError) as e:
        convert(drafter, make_target(tmp_path / "target", **target), tmp_path / "out.gguf")
    for part in parts:
        assert part in str(e.value), f"{part!r} not in: {e.value}"
    assert not list(tmp_path.glob("*out.gguf*"))
