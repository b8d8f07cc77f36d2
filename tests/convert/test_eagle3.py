"""EAGLE3 of each producer: which layers it reads, what its config leaves out, and what llama.cpp cannot run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import HIDDEN, MROPE, VOCAB, eagle3_config, eagle3_tensors, make_target, save, write_json
from dflash_convert.cli import main
from dflash_convert.conversion import convert
from dflash_convert.drafter import Drafter
from dflash_tools.errors import UserError
from test_oracle import _of_speculators, contents

NESTED = "eagle_aux_hidden_state_layer_ids"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("target"))


def of_speculators(**config: Any) -> dict[str, Any]:
    return _of_speculators(eagle3_config(architectures=["Eagle3DraftModel"], **config))


@pytest.fixture
def read(tmp_path: Path, target: Path) -> Any:
    """`read(config, tensors)`: the description of a drafter, which is also written."""

    def run(config: dict[str, Any], more: dict[str, Any] | None = None, on: Path = target, **options: Any) -> Drafter:
        made_for = {**config.get("transformer_layer_config", {}), **config}
        made_for = {k: v for k, v in made_for.items() if v is not None}
        tensors = {**eagle3_tensors(made_for), **(more or {})}
        checkpoint = save(tmp_path / "drafter", config, {n: t for n, t in tensors.items() if t is not None})
        return convert(checkpoint, on, tmp_path / "o.gguf", **options)[0]

    return run


@pytest.mark.parametrize(
    ("same", "draft_vocab", "kept"),
    [
        (("embed_tokens", "lm_head"), VOCAB, set()),
        (("embed_tokens",), VOCAB, {"output.weight"}),
        (("lm_head",), VOCAB, {"token_embd.weight"}),
        (("embed_tokens",), 128, {"output.weight"}),
    ],
)
def test_copies_of_the_target_are_left_out(
    same: tuple[str, ...], draft_vocab: int, kept: set[str], read: Any, tmp_path: Path
) -> None:
    config = eagle3_config(draft_vocab_size=draft_vocab)
    tensors, drawn = eagle3_tensors(config), torch.Generator().manual_seed(9)
    of_target = {
        f"{'model.' if n == 'embed_tokens' else ''}{n}.weight": tensors[f"{n}.weight"]
        if n in same
        else torch.randn(VOCAB, HIDDEN, generator=drawn)
        for n in ("embed_tokens", "lm_head")
    }
    on = make_target(tmp_path / "whole")
    save(on, json.loads((on / "config.json").read_text()), of_target)
    notes = read(config, on=on).notes
    assert {"token_embd.weight", "output.weight"} & contents(tmp_path / "o.gguf").keys() == kept
    assert any("identical: left out" in n for n in notes)


@pytest.mark.parametrize(
    ("config", "taps"),
    [
        pytest.param(eagle3_config(), (2, 4, 5), id="SafeAILab and all others that say nothing"),
        pytest.param(eagle3_config(**{NESTED: [1, 3, 7]}), (1, 3, 7), id="vLLM: inputs"),
        pytest.param(eagle3_config(eagle_config={NESTED: [1, 3, 6]}), (2, 4, 7), id="SpecForge: outputs"),
        pytest.param(eagle3_config(eagle_config={NESTED: []}), (2, 4, 5), id="ModelOpt's empty list"),
        pytest.param(eagle3_config(eagle_config={"layer_ids": [1, 3, 6]}), (1, 3, 6), id="vLLM's own name: inputs"),
        pytest.param(eagle3_config(eagle_config={NESTED: [-1, 3, 6]}), (0, 4, 7), id="output of the embeddings"),
        pytest.param(eagle3_config(eagle_config={NESTED: [0, 1, 2]}, **{NESTED: [3, 4, 5]}), (3, 4, 5), id="both"),
        pytest.param(eagle3_config(target_layer_ids=[0, 3, 6]), (1, 4, 7), id="DeepSpec: outputs"),
        pytest.param(of_speculators(), (2, 4, 5), id="speculators, none"),
        pytest.param(of_speculators(**{NESTED: [1, 4, 7]}), (1, 4, 7), id="speculators: inputs"),
    ],
)
def test_layers_are_those_the_producer_means(config: dict[str, Any], taps: tuple[int, ...], read: Any) -> None:
    assert read(config).taps == taps


def test_state_after_the_last_layer_is_read_where_the_fork_hands_it_out(read: Any, tmp_path: Path) -> None:
    assert read(of_speculators(**{NESTED: [1, 4, 8]})).taps == (1, 4, 8)
    on = make_target(tmp_path / "qwen2", architecture="Qwen2ForCausalLM", model_type="qwen2")
    with pytest.raises(UserError, match="inputs 0 to 7 can be tapped"):
        read(of_speculators(**{NESTED: [1, 4, 8]}), on=on)


def test_taps_are_said_and_can_be_overridden(read: Any, target: Path, tmp_path: Path, capsys: Any) -> None:
    config = eagle3_config(eagle_config={NESTED: [1, 3, 6]})
    assert "--taps inputs" in read(config).notes[0]
    assert read(config, taps="inputs").taps == (1, 3, 6)
    assert read(config, taps="outputs").taps == (2, 4, 7)
    assert read(config, taps="0, 2,7").taps == (0, 2, 7)
    assert contents(tmp_path / "o.gguf")["eagle3.target_layers"][1] == [0, 2, 7]
    args = [str(tmp_path / "drafter"), "--target-model-dir", str(target), "--outfile", str(tmp_path / "o.gguf")]
    assert main([*args, "--taps", "inputs"]) == 0
    said = capsys.readouterr().out
    assert "inputs of target layers 1, 3, 6" in said and "[1, 3, 6] instead of [2, 4, 7]" in said
    assert main([*args, "--taps", "outputs"]) == 0
    assert "instead of" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("taps", "part"),
    [("middle", "expected inputs or outputs"), ("2,18", "names 2 layers; fc of this drafter reads 3"),
     ("2,5,2", "names a layer twice"),
     ("1,2,9", "input of layer 9"), ("1,2,99999", "expected inputs"), ("-1,2,3", "expected inputs"), ("", "expected")],
)  # fmt: skip
def test_overrides_that_make_no_sense_are_refused(taps: str, part: str, read: Any) -> None:
    with pytest.raises(UserError) as e:
        read(eagle3_config(eagle_config={NESTED: [1, 3, 6]}), taps=taps)
    assert part in str(e.value)


def test_override_needs_ids_to_reinterpret(read: Any) -> None:
    with pytest.raises(UserError, match="names no layers"):
        read(eagle3_config(), taps="inputs")


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (eagle3_config(), False),
        (eagle3_config(norm_before_residual=True), True),
        (eagle3_config(eagle_config={"norm_before_residual": True}), True),
        (of_speculators(), True),
        (of_speculators(norm_before_residual=False), False),
    ],
)
def test_residual_starts_where_the_producer_trained_it(config: dict[str, Any], wanted: bool, read: Any) -> None:
    drafter = read(config)
    assert drafter.extra["norm_before_residual"].value is wanted
    unsaid = "transformer_layer_config" in config and "norm_before_residual" not in config
    assert any("no norm_before_residual: taken as true" in n for n in drafter.notes) is unsaid


@pytest.mark.parametrize("own", [(), ("embed_tokens",)])
def test_pickled_checkpoint_gives_the_same_file(own: tuple[str, ...], tmp_path: Path, target: Path) -> None:
    config = eagle3_config(architectures=["LlamaForCausalLM"])
    tensors = eagle3_tensors(config, own=own)
    made = []
    for kind in ("safetensors", "bin"):
        folder = save(tmp_path / kind / "EAGLE3-Drafter", config, tensors)
        if kind == "bin":
            (folder / "model.safetensors").unlink()
            half = {n: t.bfloat16() if t.is_floating_point() else t for n, t in tensors.items()}
            torch.save(half, folder / "pytorch_model.bin")
        made.append(tmp_path / f"{kind}.gguf")
        convert(folder, target, made[-1])
    assert made[0].read_bytes() == made[1].read_bytes()


def test_flags_in_eagle_config_hold(read: Any, tmp_path: Path) -> None:
    config = eagle3_config(eagle_config={"norm_before_fc": True, "use_aux_hidden_state": True})
    assert read(config).extra["norm_before_fc"].value is True
    assert contents(tmp_path / "o.gguf")["enc.output_norm.weight"][1] == [3 * HIDDEN]


def test_norms_of_queries_and_keys_are_reordered_as_their_rows(tmp_path: Path, target: Path) -> None:
    tensors = eagle3_tensors(eagle3_config())
    for name in "qk":
        tensors[f"midlayer.self_attn.{name}_norm.weight"] = torch.arange(16.0)
    out = tmp_path / "o.gguf"
    convert(save(tmp_path / "drafter", eagle3_config(), tensors), target, out)
    order = torch.arange(16.0).view(2, 8).T.flatten().numpy().tobytes()
    found = contents(out)
    assert found["blk.0.attn_q_norm.weight"][2] == found["blk.0.attn_k_norm.weight"][2] == order


def test_only_rotated_dimensions_are_reordered(tmp_path: Path, target: Path) -> None:
    """Of heads of 16 dimensions the first 8 are rotated: pairs (i, i + 4) become neighbours, the rest stays."""
    config = eagle3_config(partial_rotary_factor=0.5)
    tensors = eagle3_tensors(config)
    out = tmp_path / "o.gguf"
    convert(save(tmp_path / "d", config, tensors, torch.float32), target, out, "f32")
    assert contents(out)["eagle3.rope.dimension_count"][1] == 8
    order = [0, 4, 1, 5, 2, 6, 3, 7, *range(8, 16)]
    for name, gguf_name in (("q", "attn_q"), ("k", "attn_k")):
        rows = tensors[f"midlayer.self_attn.{name}_proj.weight"].unflatten(0, (-1, 16))[:, order].contiguous()
        assert contents(out)[f"blk.0.{gguf_name}.weight"][2] == rows.numpy().tobytes()


@pytest.mark.parametrize("layer", ["midlayer", "layers.0"])
@pytest.mark.parametrize(
    ("config", "more", "part"),
    [
        ({}, {"{}.self_attn.q_norm.weight": (16,)}, "missing: layers.0.self_attn.k_norm.weight (16)"),
        ({"num_hidden_layers": 2}, {}, "num_hidden_layers is 2"),
        ({}, {"layers.1.mlp.up_proj.weight": (96, 64)}, "exactly one layer"),
        ({"fc_norm": True}, {}, "no norms per tapped layer"),
        ({"eagle_config": {"fc_norm": True}}, {}, "eagle_config.fc_norm is set: llama.cpp's EAGLE3 has no norms"),
        ({}, {"fc_norm.0.weight": (64,)}, "no norms per tapped layer"),
        ({}, {"aux_norm_low.weight": (64,)}, "no norms per tapped layer"),
        ({"norm_output": True}, {}, "feeds back the state before the norm"),
        ({"attention_bias": True}, {}, "no attention biases"),
        ({"quantization_config": {"quant_method": "fp8"}}, {}, "take the original one"),
        ({NESTED: [1, 2, 3, 4, 5]}, {}, "5 tapped layers of a target with hidden size 64 need (64, 320)"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, {}, "EAGLE before EAGLE3"),
        ({"layer_types": ["sliding_attention"]}, {}, "no window"),
        ({"hidden_act": "gelu"}, {}, "llama.cpp's EAGLE3 has silu"),
        ({}, {"{}.self_attn.kv_a_proj_with_mqa.weight": (64, 64)}, "MLA"),
        ({"architectures": ["Eagle3DeepseekV2ForCausalLM"]}, {}, "MLA"),
        ({"architectures": ["Qwen3Eagle3Model"]}, {}, "missing: layers.0.self_attn.q_norm.weight (16)"),
        ({"target_layer_ids": [0, 3, 7]}, {}, "DeepSpec takes transformers' last hidden state for it"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}, "partial_rotary_factor": 0.5}, {}, "not read"),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused_with_the_reason(
    layer: str, config: dict[str, Any], more: dict[str, Any], part: str, target: Path, tmp_path: Path
) -> None:
    full = eagle3_config(**config)
    tensors = eagle3_tensors(eagle3_config(), layer_name=layer)
    tensors |= {name.format(layer): torch.zeros(shape) for name, shape in more.items()}
    with pytest.raises(UserError) as e:
        convert(save(tmp_path / "drafter", full, tensors), target, tmp_path / "o.gguf")
    assert part in str(e.value), e.value
    assert not (tmp_path / "o.gguf").exists()


def test_narrower_drafter_needs_embeddings_and_head_of_its_own(read: Any) -> None:
    config = eagle3_config(hidden_size=128, target_hidden_size=HIDDEN)
    assert read(config).target_hidden_size == HIDDEN
    with pytest.raises(UserError, match=r"missing: embed_tokens.weight \(320, 128\)"):
        read(config, {"embed_tokens.weight": None})
    full = eagle3_config(hidden_size=128, target_hidden_size=HIDDEN, draft_vocab_size=320)
    with pytest.raises(UserError, match=r"missing: lm_head.weight \(320, 128\)"):
        read(full, {"lm_head.weight": None})


def test_both_names_of_the_layer_at_once_are_refused(read: Any) -> None:
    more = {"layers.0.hidden_norm.weight": torch.ones(HIDDEN)}
    with pytest.raises(UserError, match="stands twice"):
        read(eagle3_config(), more)


def test_multimodal_target_and_gguf_target_give_the_taps_of_its_text_model(read: Any, tmp_path: Path) -> None:
    text = {"model_type": "qwen3_5_moe_text", "hidden_size": HIDDEN, "num_hidden_layers": 12, "vocab_size": 320,
            "rope_parameters": MROPE}  # fmt: skip
    on = make_target(tmp_path / "vl", architecture="Qwen3_5MoeForConditionalGeneration", num_hidden_layers=3)
    config = {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe", "text_config": text}
    write_json(on / "config.json", config)
    assert read(eagle3_config(), on=on).taps == (2, 6, 9)
