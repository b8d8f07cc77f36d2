"""Bad input ends with one message that names the file, what was found and what was expected, and leaves nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    HIDDEN,
    MASK,
    VOCAB,
    dflash_config,
    dflash_tensors,
    eagle3_config,
    eagle3_tensors,
    make_target,
    save,
    write_json,
)
from dflash_convert.cli import convert, main
from dflash_tools.errors import UserError


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("target"))


Refuse = Callable[..., None]


@pytest.fixture
def refuse(tmp_path: Path, target: Path, llama_cpp: Path) -> Refuse:
    """Convert a drafter and expect an error that contains each of `parts`, and an output folder that stays empty."""
    out = tmp_path / "out"
    out.mkdir()

    def check(drafter: Path, *parts: str, target: Path = target, outtype: str | None = None) -> None:
        with pytest.raises(UserError) as e:
            convert(drafter, target, out / "d.gguf", outtype, llama_cpp=llama_cpp)
        for part in parts:
            assert part in str(e.value), f"{part!r} not in: {e.value}"
        assert list(out.iterdir()) == []

    return check


def dflash(directory: Path, tensors: dict[str, Any] | None = None, drop: tuple[str, ...] = (), **config: Any) -> Path:
    c = dflash_config(**config)
    found = {**dflash_tensors(dflash_config()), **(tensors or {})}
    return save(directory / "drafter", c, {n: t for n, t in found.items() if n not in drop})


def eagle3(directory: Path, tensors: dict[str, Any] | None = None, drop: tuple[str, ...] = (), **config: Any) -> Path:
    c = eagle3_config(**config)
    found = {**eagle3_tensors(eagle3_config()), **(tensors or {})}
    return save(directory / "drafter", c, {n: t for n, t in found.items() if n not in drop})


@pytest.mark.parametrize("make", [dflash, eagle3])
def test_missing_tensors_are_named(make: Callable[..., Path], tmp_path: Path, refuse: Refuse) -> None:
    refuse(make(tmp_path, drop=("norm.weight",)), "missing", f"norm.weight ({HIDDEN})")


def test_all_missing_extra_and_odd_tensors_stand_in_one_message(tmp_path: Path, refuse: Refuse) -> None:
    odd = {"layers.0.self_attn.k_proj.weight": torch.zeros(64, 32), "layers.2.mlp.up_proj.weight": torch.zeros(2, 2)}
    drafter = dflash(tmp_path, odd, drop=("layers.1.mlp.down_proj.weight",))
    refuse(
        drafter,
        "missing: layers.1.mlp.down_proj.weight (64, 96)",
        "layers.0.self_attn.k_proj.weight is (64, 32), the config calls for (64, 64)",
        "not part of this family: layers.2.mlp.up_proj.weight (2, 2)",
    )


def test_biases_are_refused_as_such(tmp_path: Path, refuse: Refuse) -> None:
    refuse(eagle3(tmp_path, {"midlayer.self_attn.q_proj.bias": torch.zeros(64)}), "no biases in drafters")
    refuse(eagle3(tmp_path, attention_bias=True), "config.json: attention_bias")
    refuse(dflash(tmp_path, {"layers.0.mlp.up_proj.bias": torch.zeros(96)}), "no biases in drafters")


def test_biases_and_the_key_that_announces_them_must_agree(tmp_path: Path, refuse: Refuse) -> None:
    drafter = dflash(tmp_path, {"layers.0.self_attn.q_proj.bias": torch.zeros(128)})
    refuse(drafter, "layers.0.self_attn.q_proj.bias is there", "attention_bias is not true")
    refuse(dflash(tmp_path, attention_bias=True), "missing: layers.0.self_attn.q_proj.bias (128)")


@pytest.mark.parametrize("make", [dflash, eagle3])
def test_target_of_another_width_is_refused(make: Callable[..., Path], tmp_path: Path, refuse: Refuse) -> None:
    other = make_target(tmp_path / "other", hidden_size=128)
    refuse(make(tmp_path), "fc.weight is (64, 192)", "hidden size 128 need", str(other), target=other)


def test_drafter_narrower_than_its_target_is_refused(tmp_path: Path, refuse: Refuse) -> None:
    other = make_target(tmp_path / "other", hidden_size=128)
    drafter = dflash(tmp_path, {"fc.weight": torch.zeros(64, 3 * 128)})
    refuse(drafter, "hidden_size is 64", "are 128 wide", "only at their target's hidden size", target=other)


def test_number_of_taps_must_match_fc(tmp_path: Path, refuse: Refuse) -> None:
    drafter = dflash(tmp_path, dflash_config={"mask_token_id": MASK, "target_layer_ids": [0, 2]})
    refuse(drafter, "fc.weight is (64, 192)", "2 tapped layers", "(64, 128)")
    drafter = eagle3(tmp_path, eagle_aux_hidden_state_layer_ids=[1, 2])
    refuse(drafter, "fc.weight is (64, 192)", "2 tapped layers", "(64, 128)")


@pytest.mark.parametrize(("ids", "named"), [([0, 2, 7], "8"), ([0, 2, 40], "41")])
def test_taps_beyond_the_target_are_refused(ids: list[int], named: str, tmp_path: Path, refuse: Refuse) -> None:
    drafter = dflash(tmp_path, dflash_config={"mask_token_id": MASK, "target_layer_ids": ids})
    other = make_target(tmp_path / "qwen2", architecture="Qwen2ForCausalLM", model_type="qwen2")
    refuse(drafter, f"input of layer {named} of the target", "has 8 layers", "0 to 7", target=other)


def test_eagle3_taps_beyond_the_target_are_refused(tmp_path: Path, refuse: Refuse) -> None:
    last = eagle3(tmp_path, eagle_aux_hidden_state_layer_ids=[1, 3, 8])
    other = make_target(tmp_path / "qwen2", architecture="Qwen2ForCausalLM", model_type="qwen2")
    refuse(last, "input of layer 8", "0 to 7", "what leaves its last layer", target=other)
    nested = {"eagle_aux_hidden_state_layer_ids": [1, 3, 8]}
    refuse(eagle3(tmp_path, eagle_config=nested), "input of layer 9", "0 to 8")


def test_usual_taps_of_eagle3_must_exist(tmp_path: Path, refuse: Refuse) -> None:
    short = make_target(tmp_path / "short", num_hidden_layers=2)
    refuse(eagle3(tmp_path), "input of layer -1", "has 2 layers", target=short)


@pytest.mark.parametrize("make", [dflash, eagle3])
def test_other_vocabulary_is_refused(make: Callable[..., Path], tmp_path: Path, refuse: Refuse) -> None:
    other = make_target(tmp_path / "other", vocab_size=VOCAB + 64)
    refuse(make(tmp_path), "vocab_size is 320", f"is {VOCAB + 64}", target=other)


def test_mask_token_must_be_there_and_in_the_vocabulary(tmp_path: Path, refuse: Refuse) -> None:
    refuse(dflash(tmp_path, dflash_config={"target_layer_ids": [0, 2, 5]}), "dflash_config.mask_token_id is missing")
    for bad in (VOCAB, 10**6):
        drafter = dflash(tmp_path, dflash_config={"target_layer_ids": [0, 2, 5], "mask_token_id": bad})
        refuse(drafter, f"mask_token_id is {bad}", "0 to 319")
    drafter = dflash(tmp_path, dflash_config={"target_layer_ids": [0, 2, 5], "mask_token_id": -1})
    refuse(drafter, "dflash_config.mask_token_id is -1")


def test_taps_are_not_guessed(tmp_path: Path, refuse: Refuse) -> None:
    refuse(dflash(tmp_path, dflash_config={"mask_token_id": MASK}), "target_layer_ids is missing")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"architectures": ["SomethingElse"]}, "SomethingElse"),
        ({"architectures": ["SomethingElse"], "transformer_layer_config": {}}, "SomethingElse"),
        ({"dflash_config": {"conv_kernel_size": 2}}, "DFlash2"),
        ({"architectures": ["SomethingElse"], "markov_rank": 256}, "look like DSpark"),
    ],
)
def test_unknown_families_are_refused_with_the_known_ones(
    config: dict[str, Any], name: str, tmp_path: Path, refuse: Refuse
) -> None:
    refuse(dflash(tmp_path, **config), name, "Known: DFlash", "EAGLE3", "DFlashDraftModel", "Eagle3LlamaForCausalLM")


def test_family_is_told_by_content_not_by_name(tmp_path: Path, refuse: Refuse) -> None:
    refuse(eagle3(tmp_path, architectures=["DFlashDraftModel"]), "DFlashDraftModel", "look like EAGLE3")
    drafter = dflash(tmp_path, {"markov_head.markov_w1.weight": torch.zeros(4, 4)})
    refuse(drafter, "DFlashDraftModel", "look like DSpark")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("outtype", ["bf16", "f32", "q8_0"])
def test_weights_that_are_not_finite_are_refused(
    bad: float, dtype: torch.dtype, outtype: str, tmp_path: Path, refuse: Refuse
) -> None:
    tensors = dflash_tensors(dflash_config())
    tensors["layers.1.mlp.up_proj.weight"][95, 63] = bad
    drafter = save(tmp_path / "drafter", dflash_config(), tensors, dtype)
    refuse(drafter, "layers.1.mlp.up_proj.weight holds", f"{bad:g}", "element 6143 of 6144", outtype=outtype)


def test_norm_that_is_not_finite_is_refused(tmp_path: Path, refuse: Refuse) -> None:
    refuse(dflash(tmp_path, {"norm.weight": torch.full((64,), float("nan"))}), "norm.weight holds nan")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_too_large_for_f16_are_refused(dtype: torch.dtype, tmp_path: Path, refuse: Refuse) -> None:
    tensors = dflash_tensors(dflash_config())
    tensors["fc.weight"][3, 3] = -7e4
    drafter = save(tmp_path / "drafter", dflash_config(), tensors, dtype)
    refuse(drafter, "fc.weight holds numbers up to 7", "too large for F16", "--outtype bf16", outtype="f16")


def test_quantised_checkpoints_are_refused(tmp_path: Path, refuse: Refuse) -> None:
    refuse(dflash(tmp_path, quantization_config={"quant_method": "fp8"}), "quantization_config", "original")
    refuse(dflash(tmp_path, {"norm.weight": torch.zeros(64, dtype=torch.int64)}), "norm.weight is stored as I64")


@pytest.mark.parametrize(
    ("rope", "part"),
    [
        ({"rope_type": "longrope", "factor": 4.0}, "'longrope'"),
        ({"rope_type": "dynamic", "factor": 4.0}, "'dynamic'"),
        ({"full_attention": {"rope_theta": 1e6}}, "full_attention"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": -1.0}, "beta_fast"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_slow": 2.0, "rope_theta": 1.0}, "base above 1"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_slow": 2.0, "partial_rotary_factor": 0.5}, "together with yarn"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_slow": 5e-324}, "not finite"),
        ({"rope_type": "yarn", "factor": 4.0, "attn_factor": 3e38}, "on attention"),
        ({"rope_type": "llama3", "factor": 4.0, "partial_rotary_factor": 0.5}, "together with llama3"),
        ({"rope_type": "linear"}, "factor is missing"),
        ({"rope_type": "llama3", "low_freq_factor": 4.0, "high_freq_factor": 4.0}, "high_freq_factor"),
    ],
)
def test_rope_that_gguf_cannot_say_is_refused(rope: dict[str, Any], part: str, tmp_path: Path, refuse: Refuse) -> None:
    refuse(dflash(tmp_path, rope_scaling=rope), "rope_scaling", part)


def test_target_without_tokenizer_is_refused(tmp_path: Path, refuse: Refuse, target: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((target / "config.json").read_bytes())
    refuse(dflash(tmp_path), "no tokenizer here", str(bare), target=bare)


def test_unknown_pretokenizer_is_refused_with_its_regex(tmp_path: Path, refuse: Refuse) -> None:
    odd = make_target(tmp_path / "odd")
    tokenizer = json.loads((odd / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"[^\r\n]{1,7}"
    write_json(odd / "tokenizer.json", tokenizer)
    refuse(dflash(tmp_path), "llama.cpp has no name", r"[^\\r\\n]{1,7}", "Known: bailingmoe", target=odd)


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (lambda d: d[:-100], ("truncated",)),
        (lambda d: d + b"x" * 9, ("9 bytes after the last tensor",)),
        (lambda d: d[:5], ("truncated or no safetensors",)),
        (lambda d: (10**15).to_bytes(8, "little") + d[8:], ("truncated or no safetensors", "its header alone")),
        (lambda d: b"", ("truncated or no safetensors",)),
        (lambda d: re.sub(rb'"BF16"', b'"BF17"', d, count=1), ("'BF17' is unknown",)),
        (lambda d: d[:8] + b"[" + d[9:], ("not valid JSON",)),
    ],
)
def test_damaged_safetensors_are_refused(
    edit: Callable[[bytes], bytes], parts: tuple[str, ...], tmp_path: Path, refuse: Refuse
) -> None:
    drafter = dflash(tmp_path)
    file = drafter / "model.safetensors"
    file.write_bytes(edit(file.read_bytes()))
    refuse(drafter, "model.safetensors", *parts)


def _rewrite_header(file: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    data = file.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    edit(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n :])


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ({"data_offsets": [0, 128]}, "overlaps"),
        ({"shape": [65]}, "takes 130 bytes, data_offsets give 128"),
        ({"shape": [2**40, 2**40]}, "data_offsets give 128"),
        ({"shape": [-64]}, "malformed"),
        ({"shape": "64"}, "malformed"),
        ({"data_offsets": [128, 0]}, "data_offsets give -128"),
        ({"data_offsets": [True, 128]}, "malformed"),
        ({"dtype": None}, "is unknown"),
    ],
)
def test_headers_that_lie_are_refused(entry: dict[str, Any], part: str, tmp_path: Path, refuse: Refuse) -> None:
    drafter = dflash(tmp_path)
    _rewrite_header(drafter / "model.safetensors", lambda h: h["norm.weight"].update(entry))
    refuse(drafter, "model.safetensors", part)


def test_holes_between_tensors_are_refused(tmp_path: Path, refuse: Refuse) -> None:
    drafter = dflash(tmp_path)
    _rewrite_header(drafter / "model.safetensors", lambda h: h.pop("layers.0.mlp.up_proj.weight"))
    refuse(drafter, "belong to no tensor")


def test_shards_must_agree_with_their_index(tmp_path: Path, refuse: Refuse) -> None:
    drafter = save(tmp_path / "drafter", dflash_config(), dflash_tensors(dflash_config()), shards=3)
    index = drafter / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    gone = {**good["weight_map"], "norm.weight": "model-00009-of-00003.safetensors"}
    write_json(index, {"weight_map": gone})
    refuse(drafter, "model-00009-of-00003.safetensors: named by the index")
    write_json(index, {"weight_map": {**good["weight_map"], "more.weight": good["weight_map"]["norm.weight"]}})
    refuse(drafter, "more.weight")
    write_json(index, {"weight_map": {**good["weight_map"], "norm.weight": "../norm.safetensors"}})
    refuse(drafter, "a file name without directories")
    write_json(index, good)
    (drafter / good["weight_map"]["norm.weight"]).unlink()
    refuse(drafter, "Download it")


def test_d2t_must_name_different_tokens_of_the_target(tmp_path: Path, refuse: Refuse) -> None:
    good = eagle3_tensors(eagle3_config())["d2t"]
    refuse(eagle3(tmp_path, {"d2t": good + torch.arange(128)}), "d2t[i] + i", "the ids themselves")
    twice = good.clone()
    twice[5] = twice[4] - 1
    refuse(eagle3(tmp_path, {"d2t": twice}), "different target ids")
    for bad in (2**62, -(2**62), -1):
        wild = good.clone()
        wild[0] = bad
        refuse(eagle3(tmp_path, {"d2t": wild}), "d2t[i] + i")
    refuse(eagle3(tmp_path, {"d2t": good.float()}), "d2t is stored as BF16")


def test_head_of_a_reduced_vocabulary_is_required(tmp_path: Path, refuse: Refuse) -> None:
    refuse(eagle3(tmp_path, drop=("d2t", "lm_head.weight")), "missing: lm_head.weight (128, 64), d2t (128)")
    refuse(eagle3(tmp_path, draft_vocab_size=VOCAB + 1), "draft_vocab_size is 321")


def test_eagle3_of_two_layers_is_refused(tmp_path: Path, refuse: Refuse) -> None:
    refuse(eagle3(tmp_path, num_hidden_layers=2), "num_hidden_layers is 2")


def test_input_norm_without_its_flag_is_refused(tmp_path: Path, refuse: Refuse) -> None:
    refuse(eagle3(tmp_path, {"input_norm.weight": torch.ones(192)}), "input_norm.weight", "norm_before_fc is not true")


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"hidden_size": "64"}, 'hidden_size is "64"; a whole number'),
        ({"hidden_size": True}, "hidden_size is true"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_key_value_heads": 3}, "does not divide"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({"rope_theta": 1e300}, "rope_theta is 1e+300"),
        ({"rope_theta": 10**400}, "rope_theta is 1000"),
        ({"head_dim": 31}, "head_dim is 31"),
        ({"layer_types": ["full_attention"]}, "has 1 entries for 2 layers"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "names linear_attention"),
        ({"dflash_config": [1]}, "dflash_config is [1]; an object"),
        ({"dflash_config": {"mask_token_id": MASK, "target_layer_ids": "all"}}, "a list of whole numbers"),
        ({"block_size": 1}, "block_size is 1"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"model_type": 3}, "model_type is 3; a string"),
        ({"output_multiplier": 0}, "output_multiplier is 0"),
        ({"input_embedding_scale": 0.0}, "input_embedding_scale is 0"),
        ({"final_logit_softcapping": -3}, "final_logit_softcapping is -3"),
    ],
)
def test_senseless_values_in_the_config_are_refused(
    config: dict[str, Any], part: str, tmp_path: Path, refuse: Refuse
) -> None:
    refuse(dflash(tmp_path, **config), "config.json: ", part)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a":1,"a":2}', "[" * 100_000, '{"x": ' + "9" * 5000 + "}", "\xff"])
def test_config_that_is_no_json_object_is_refused(text: str, tmp_path: Path, refuse: Refuse) -> None:
    drafter = dflash(tmp_path)
    (drafter / "config.json").write_bytes(text.encode("latin-1"))
    refuse(drafter, "config.json")


def test_paths_that_are_not_what_they_should_be(tmp_path: Path, refuse: Refuse, target: Path) -> None:
    refuse(tmp_path / "nothing", "no such file or directory")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "config.json: not found")
    write_json(tmp_path / "empty" / "config.json", {})
    refuse(tmp_path / "empty", "no weights")
    drafter = dflash(tmp_path)
    refuse(drafter, "no such directory or file", target=tmp_path / "nothing")
    refuse(drafter, f"give the target's HF directory, {target}, or its .gguf", target=target / "config.json")
    (tmp_path / "target").write_bytes(b"something else")
    refuse(drafter, "not a GGUF file", target=tmp_path / "target")
    refuse(drafter, "config.json: not found", target=tmp_path)


@pytest.mark.parametrize("card", ["---\nlicense: {a: [1]}\n---\n", "---\nname: [\n---\n", "---\nmodel_name: 7\n---\n"])
def test_odd_model_cards_are_an_error_or_taken_but_never_a_crash(
    card: str, tmp_path: Path, target: Path, llama_cpp: Path
) -> None:
    drafter = dflash(tmp_path)
    (drafter / "README.md").write_text(card, encoding="utf-8")
    try:
        convert(drafter, target, tmp_path / "d.gguf", llama_cpp=llama_cpp)
    except UserError as e:
        assert "README.md" in str(e)


def test_inputs_are_never_overwritten(tmp_path: Path, target: Path, llama_cpp: Path) -> None:
    drafter = dflash(tmp_path)
    before = (drafter / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="one of the inputs"):
        convert(drafter, target, drafter / "model.safetensors", llama_cpp=llama_cpp)
    assert (drafter / "model.safetensors").read_bytes() == before


def test_command_line_ends_with_1_and_one_line_or_with_2_for_wrong_usage(
    tmp_path: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drafter = dflash(tmp_path, drop=("norm.weight",))
    status = main([str(drafter), "--target-model-dir", str(target), "--outfile", str(tmp_path / "d.gguf")])
    err = capsys.readouterr().err
    assert status == 1 and err.startswith("convert-dflash: ") and "Traceback" not in err
    with pytest.raises(SystemExit) as e:
        main([str(drafter)])
    assert e.value.code == 2
