"""Our file equals the one llama.cpp's converter writes: every key with its type, every tensor byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from checkpoints import (
    HIDDEN,
    MASK,
    MROPE,
    VOCAB,
    Tensors,
    dflash_config,
    dflash_tensors,
    eagle3_config,
    eagle3_tensors,
    make_target,
    save,
    write_json,
)
from dflash_convert.cli import convert
from dflash_convert.pretokenizer import name_from_tokenizer_json

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32, "beta_slow": 1.0}
SLIDING = {
    "layer_types": ["sliding_attention", "full_attention"],
    "use_sliding_window": True,
    "sliding_window": 64,
    "max_window_layers": 2,
}
WINDOW_WITHOUT_LAYERS = {
    f"dflash.attention.sliding_window{key}": "upstream writes it for full layers only, and llama.cpp aborts at load"
    for key in ("", "_pattern")
}
QWEN35 = {
    "architecture": "Qwen3_5ForCausalLM",
    "rope_parameters": MROPE,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}
# a multimodal target: its text model has a config of its own
QWEN35_MOE = {
    "architecture": "Qwen3_5MoeForConditionalGeneration",
    "model_type": "qwen3_5_moe",
    "text_config": {
        "model_type": "qwen3_5_moe_text",
        "hidden_size": HIDDEN,
        "num_hidden_layers": 8,
        "vocab_size": VOCAB,
        "rope_parameters": MROPE,
    },
}
NESTED = {"mask_token_id": MASK, "target_layer_ids": [0, 2, 5]}
PER_LAYER = {
    "dflash.attention.causal_pattern": "the authors mean sliding layers causal and full ones not; upstream has one flag"
}
SAID = {"dflash.attention.causal": "llama.cpp's default, said because a file with sliding layers could mean either"}
BOUNDLESS = {
    f"dflash.attention.sliding_window{key}": "parts the layers that are causal from the others, and hides nothing"
    for key in ("", "_pattern")
}
CAUSAL = {"dflash.attention.causal": "all layers slide, so the authors mean all causal; upstream leaves them not"}


@dataclass
class Case:
    """`config` overrides the family's, `layout` rearranges it before it is saved; `differs` names keys that differ
    on purpose, with the reason; `fails`: how upstream's converter ends. `row`: of the table of formats, whose upstream
    column then says `upstream`."""

    family: str = "dflash"
    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16
    outtype: str = "bf16"
    shards: int = 1
    edit: Callable[[Path, Tensors], Tensors] = lambda directory, tensors: tensors
    layout: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config
    differs: dict[str, str] = field(default_factory=dict)
    fails: str | None = None
    row: str = ""
    upstream: str = "the same file"


def _prefixed(directory: Path, tensors: Tensors) -> Tensors:
    return {f"model.{name}": t for name, t in tensors.items()}


def _yarn_as_factors(arch: str, *more: str) -> dict[str, str]:
    """The differences where yarn is not the default one; `more`: keys that upstream writes of it besides."""
    scaling = "type", "factor", "original_context_length", "yarn_beta_fast", "yarn_beta_slow", *more
    return {
        **{f"{arch}.rope.scaling.{key}": "llama.cpp reads the first three only for its drafters" for key in scaling},
        f"{arch}.rope.scaling.attn_factor": "the factor on cosine and sine, which llama.cpp reads for all",
        "rope_freqs.weight": "what the keys mean, a factor for each frequency",
    }


def _of_speculators(config: dict[str, Any]) -> dict[str, Any]:
    """The layer's keys in a section of their own, as speculators writes EAGLE3."""
    own = {"draft_vocab_size", "eagle_aux_hidden_state_layer_ids", "norm_before_residual", "norm_before_fc"}
    inner = {k: v for k, v in config.items() if k not in own | {"architectures"}}
    inner["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    outer = {k: v for k, v in config.items() if k in own}
    return {
        "architectures": config["architectures"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.9.0",
        "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": None}},
        "target_hidden_size": None,
        "transformer_layer_config": inner,
        **outer,
    }


def _with_sinks(directory: Path, tensors: Tensors) -> Tensors:
    return tensors | {f"layers.{i}.self_attn.attention_sink_bias": torch.full((4,), 0.5 + i) for i in range(2)}


def _with_head_norms(directory: Path, tensors: Tensors) -> Tensors:
    """A layer of Qwen3, under the name that all but SafeAILab give it."""
    norms = {f"layers.0.self_attn.{n}_norm.weight": torch.rand(16) for n in "qk"}
    return {n.replace("midlayer.", "layers.0."): t for n, t in tensors.items()} | norms


def _five_taps(directory: Path, tensors: Tensors) -> Tensors:
    return _with_head_norms(directory, tensors) | {"fc.weight": torch.randn(HIDDEN, 5 * HIDDEN)}


def _with_cards(directory: Path, tensors: Tensors) -> Tensors:
    (directory / "README.md").write_text(
        "---\nlicense: mit\nlanguage:\n- en\n- no\ntags: [draft, speculative]\nbase_model: some-org/Some-Model-4B\n"
        "datasets:\n- an-org/a-set\n---\n# A drafter\n",
        encoding="utf-8",
    )
    write_json(directory / "generation_config.json", {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05})
    return tensors


CASES: dict[str, Case] = {
    **{
        f"dflash-{str(dtype)[6:]}-{outtype}": Case(dtype=dtype, outtype=outtype)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        for outtype in ("f32", "f16", "bf16", "q8_0")
    },
    **{f"eagle3-{outtype}": Case("eagle3", outtype=outtype) for outtype in ("f32", "f16", "bf16", "q8_0")},
    "block size nested": Case(
        config={"block_size": 16, "dflash_config": {**NESTED, "block_size": 4}}, row="DFlash (z-lab)"
    ),
    "block size missing": Case(config={"block_size": None}),
    "taps at top level": Case(
        config={"dflash_config": {"mask_token_id": MASK}, "target_layer_ids": [1, 6]}, tensors={}
    ),
    "embedding output tapped": Case(config={"dflash_config": {**NESTED, "target_layer_ids": [-1, 3]}}),
    "one kv head, odd head_dim": Case(config={"num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 10}),
    "no grouped heads": Case(config={"num_key_value_heads": 4}),
    "one layer": Case(config={"num_hidden_layers": 1}),
    "sharded": Case(shards=3),
    "model prefix": Case(edit=_prefixed),
    "rows that q8_0 cannot cut": Case(config={"intermediate_size": 80}, outtype="q8_0"),
    "yarn": Case(config={"rope_scaling": YARN}, row="DFlash (z-lab), yarn"),
    "yarn without original length": Case(
        config={"rope_scaling": {k: v for k, v in YARN.items() if k != "original_max_position_embeddings"}}
    ),
    "yarn with attention factor": Case(
        config={"rope_scaling": {**YARN, "attention_factor": 1.25}},
        differs=_yarn_as_factors("dflash", "yarn_attn_factor"),
    ),
    "yarn with a range of its own": Case(
        config={"rope_scaling": {**YARN, "beta_fast": 24, "beta_slow": 2.0}}, differs=_yarn_as_factors("dflash"),
        row="DFlash (z-lab), yarn with settings of its own", upstream="settings left out: no block equal",
    ),
    "linear rope": Case(config={"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "rope_parameters": Case(
        config={"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}
    ),
    "rope from nowhere": Case(config={"rope_theta": None, "rope_scaling": None}),
    "partial rotary": Case(config={"partial_rotary_factor": 0.5}),
    "interleaved rope": Case(config={"rope_is_neox_style": False}),
    "sections of its own": Case(config={"rope_parameters": {"rope_type": "default", "mrope_section": [8, 4, 4]}}),
    "sliding, causal": Case(config={**SLIDING, "is_causal": True}),
    "sliding, not causal": Case(config={**SLIDING, "is_causal": False}),
    "sliding, unsaid": Case(
        config=SLIDING, differs=PER_LAYER, row="DFlash (z-lab), sliding and full layers, no is_causal",
        upstream="at most 1 block in 4 equal",
    ),
    "sliding, causal nested": Case(config={**SLIDING, "dflash_config": {**NESTED, "causal": True}}),
    "sliding by max_window_layers": Case(
        config={"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, differs=PER_LAYER
    ),
    "sliding, window by default": Case(
        config={"use_sliding_window": True, "max_window_layers": 0}, differs=CAUSAL,
        row="DFlash (z-lab), all layers sliding, no is_causal", upstream="no layer causal",
    ),
    "sliding types, window switched off": Case(
        config={**SLIDING, "use_sliding_window": False}, differs=PER_LAYER | BOUNDLESS,
        row="DFlash (z-lab), use_sliding_window false", upstream="no layer causal",
    ),
    "window, all layers full": Case(
        config={**SLIDING, "layer_types": ["full_attention"] * 2}, differs=WINDOW_WITHOUT_LAYERS
    ),
    "window, max_window_layers beyond the last": Case(
        config={"use_sliding_window": True, "sliding_window": 64}, differs=WINDOW_WITHOUT_LAYERS
    ),
    "use_swa": Case(config={"dflash_config": {**NESTED, "use_swa": True, "swa_window_size": 32}}, differs=SAID),
    "use_swa without window": Case(config={"dflash_config": {**NESTED, "use_swa": True}}, differs=SAID),
    "sinks and value scale": Case(
        config={"dflash_config": {**NESTED, "attention_value_scale": 0.612, "attention_sink_bias": True}},
        edit=_with_sinks,
    ),
    "scaled embeddings and logits": Case(
        config={"input_embedding_scale": 8.0, "output_multiplier": 0.25, "final_logit_softcapping": 20.0}
    ),
    "scales nested": Case(config={"dflash_config": {**NESTED, "input_embedding_scale": 3, "output_multiplier": 0.5}}),
    "own embeddings and head": Case(tensors={"own": ("embed_tokens", "lm_head")}),
    "own head": Case(tensors={"own": ("lm_head",)}),
    "model card": Case(edit=_with_cards),
    "no model type": Case(config={"model_type": None}),
    "defaults of the model type": Case(
        config={"max_position_embeddings": None, "rms_norm_eps": None, "head_dim": None}, tensors={"head_dim": 128}
    ),
    "m-rope target": Case(target=QWEN35),
    "m-rope target, partial rotary": Case(target=QWEN35, config={"partial_rotary_factor": 0.25}),
    "m-rope target, sections of its own": Case(
        target=QWEN35, config={"rope_parameters": {"rope_type": "default", "mrope_section": [8, 4]}}
    ),
    "multimodal target": Case(target=QWEN35_MOE),
    "llama model type": Case(
        config={"model_type": "llama", "head_dim": None, "num_key_value_heads": None, "sliding_window": 64}
    ),
    "llama target": Case(target={"architecture": "LlamaForCausalLM"}),
    "eagle3, vLLM's name and layer": Case(
        "eagle3",
        {"architectures": ["Eagle3LlamaForCausalLM"]},
        tensors={"layer_name": "layers.0"},
        row="EAGLE3 (vLLM, AngelSlim)",
    ),
    "eagle3 without embeddings": Case("eagle3", tensors={"own": ()}),
    "eagle3, head_dim of its own": Case("eagle3", {"head_dim": 24}),
    "eagle3, explicit taps": Case("eagle3", {"eagle_aux_hidden_state_layer_ids": [1, 3, 6]}),
    "eagle3, norm before residual": Case("eagle3", {"norm_before_residual": True}),
    "eagle3, norm before fc": Case("eagle3", {"norm_before_fc": True}),
    "eagle3 of SafeAILab": Case(
        "eagle3", {"architectures": ["LlamaForCausalLM"]}, tensors={"own": ()}, row="EAGLE3 (SafeAILab)"
    ),
    "eagle3 of speculators": Case(
        "eagle3",
        {
            "architectures": ["Eagle3DraftModel"],
            "eagle_aux_hidden_state_layer_ids": [2, 4, 8],
            "norm_before_residual": True,
            "norm_before_fc": True,
        },
        tensors={"layer_name": "layers.0"},
        target=QWEN35,
        layout=_of_speculators,
        row="EAGLE3 (speculators)",
    ),
    "eagle3 of speculators, older name, default taps": Case(
        "eagle3",
        {"architectures": ["Eagle3Speculator"], "norm_before_residual": False},
        tensors={"layer_name": "layers.0"},
        layout=_of_speculators,
    ),
    "eagle3 of speculators, residual unsaid": Case(
        "eagle3",
        {"architectures": ["Eagle3Speculator"], "rope_scaling": LLAMA3},
        tensors={"layer_name": "layers.0"},
        layout=_of_speculators,
        differs={"eagle3.norm_before_residual": "upstream takes false, speculators trains and vLLM reads true"},
        row="EAGLE3 (speculators), norm_before_residual unsaid",
        upstream="another residual",
    ),
    "eagle3, partial rotary": Case(
        "eagle3",
        {"partial_rotary_factor": 0.5},
        differs={
            "eagle3.rope.dimension_count": "upstream rotates the whole head",
            "blk.0.attn_q.weight": "and reorders it",
            "blk.0.attn_k.weight": "likewise",
        },
        row="EAGLE3, partial rotation",
        upstream="whole heads rotated",
    ),
    "eagle3, full vocabulary": Case("eagle3", {"draft_vocab_size": VOCAB}),
    "eagle3, another hidden size": Case(
        "eagle3", {"hidden_size": 128, "target_hidden_size": HIDDEN}, row="EAGLE3, another width than its target"
    ),
    "eagle3, llama3 rope": Case("eagle3", {"rope_scaling": LLAMA3}),
    "eagle3, llama3 rope, long": Case(
        "eagle3",
        {"head_dim": 128, "rope_scaling": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192}},
    ),
    "eagle3, yarn": Case("eagle3", {"rope_scaling": YARN}),
    "eagle3, yarn with a range of its own": Case(
        "eagle3", {"rope_scaling": {**YARN, "beta_fast": 24}}, differs=_yarn_as_factors("eagle3")
    ),
    "eagle3, m-rope target": Case("eagle3", target=QWEN35),
    "eagle3, multimodal target": Case("eagle3", target=QWEN35_MOE),
    "eagle3, llama target": Case("eagle3", target={"architecture": "LlamaForCausalLM"}),
    "eagle3, nested taps": Case(
        "eagle3",
        {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 6]}},
        differs={"eagle3.target_layers": "upstream ignores eagle_config and takes its default; we read it as outputs"},
        row="EAGLE3 (SpecForge)",
        upstream="other layers read",
    ),
    "eagle3, norm before fc nested": Case(
        "eagle3",
        {"eagle_config": {"norm_before_fc": True}},
        differs={"eagle3.norm_before_fc": "upstream reads the top level only, although the norm's tensor is there"},
        row="EAGLE3 (NVIDIA ModelOpt)",
        upstream="norm before fc left out",
    ),
    "mask at top level": Case(
        config={"dflash_config": {"target_layer_ids": [0, 2, 5]}, "mask_token_id": MASK},
        differs={"tokenizer.ggml.mask_token_id": "upstream drops it, and llama.cpp aborts at the first draft"},
        row="DFlash (z-lab), keys at the top level", upstream="mask token left out",
    ),
    "llama3 rope": Case(
        config={"rope_scaling": LLAMA3},
        differs={"rope_freqs.weight": "upstream drops llama3 scaling of a DFlash drafter: every draft is wrong"},
        row="DFlash (z-lab), llama3 rope", upstream="scaling left out: no block equal",
    ),
    "eagle3 of speculators, Qwen3 layers": Case(
        "eagle3", config={"architectures": ["Eagle3DraftModel"], "model_type": "qwen3", "norm_before_residual": True,
                          "eagle_aux_hidden_state_layer_ids": [1, 3, 6]},
        edit=_with_head_norms, layout=_of_speculators, fails="Can not map tensor",
        row="EAGLE3 (speculators), Qwen3 layers", upstream="converter fails",
    ),
    "eagle3 of DeepSpec": Case(
        "eagle3", config={"architectures": ["Qwen3Eagle3Model"], "model_type": "qwen3", "head_dim": 16,
                          "target_layer_ids": [0, 1, 2, 3, 4], "draft_vocab_size": None},
        tensors={"own": ("embed_tokens", "lm_head")}, edit=_five_taps, fails="SystemExit: 1",
        row="EAGLE3 (DeepSpec)", upstream="converter fails",
    ),
    "gelu": Case(config={"hidden_act": "gelu_pytorch_tanh"},
                 differs={"dflash.hidden_activation": "upstream writes none and llama.cpp would run silu"}),
}  # fmt: skip


@dataclass
class Pair:
    drafter: Path
    target: Path
    ours: Path
    theirs: Path
    error: str | None = None


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, llama_cpp: Path) -> dict[str, Pair]:
    """The checkpoint of every case, and what upstream makes of all of them in one process."""
    root = tmp_path_factory.mktemp("oracle")
    targets: dict[str, Path] = {}
    found, jobs = {}, []
    for i, (name, case) in enumerate(CASES.items()):
        key = json.dumps(case.target)
        if key not in targets:
            targets[key] = make_target(root / f"target{len(targets)}", **case.target)
        make_config, make_tensors = {
            "dflash": (dflash_config, dflash_tensors),
            "eagle3": (eagle3_config, eagle3_tensors),
        }[case.family]
        config = make_config(**case.config)
        kwargs = {k: v for k, v in case.tensors.items() if k != "head_dim"}
        shape_config = {**config, **({"head_dim": case.tensors["head_dim"]} if "head_dim" in case.tensors else {})}
        directory = root / f"drafter-{i}" / "Some-Drafter-0.1B-v2"
        directory.mkdir(parents=True)
        tensors = case.edit(directory, make_tensors(shape_config, seed=i, **kwargs))
        save(directory, case.layout(config), tensors, case.dtype, case.shards)
        pair = Pair(directory, targets[key], root / f"ours-{i}.gguf", root / f"theirs-{i}.gguf")
        jobs.append(["qwen2", str(directory), "--target-model-dir", str(pair.target),
                     "--outfile", str(pair.theirs), "--outtype", case.outtype])  # fmt: skip
        found[name] = pair
    for pair, error in zip(found.values(), run_upstream(llama_cpp, jobs, root), strict=True):
        pair.error = error
    return found


def run_upstream(llama_cpp: Path, jobs: list[list[str]], tmp: Path) -> list[str | None]:
    """Jobs are [name of the pre-tokenizer, argument, ...]; returns the error of each, None for success."""
    write_json(tmp / "jobs.json", jobs)
    script = Path(__file__).with_name("upstream_oracle.py")
    done = subprocess.run(
        [sys.executable, script, llama_cpp, tmp / "jobs.json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def _marked(name: str) -> Any:
    case = CASES[name]
    marks = [pytest.mark.family(case.row, converts="yes", upstream=case.upstream)] if case.row else []
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [_marked(name) for name in CASES])
def test_file_equals_that_of_upstreams_converter(name: str, pairs: dict[str, Pair], llama_cpp: Path) -> None:
    case, pair = CASES[name], pairs[name]
    convert(pair.drafter, pair.target, pair.ours, case.outtype, llama_cpp=llama_cpp)
    if case.fails is not None:
        assert case.fails in (pair.error or "it works now")
        return
    assert pair.error is None
    assert_same_file(pair.ours, pair.theirs, case.differs)


def assert_same_file(ours: Path, theirs: Path, differs: dict[str, str] | None = None) -> None:
    """Equal but for the keys and tensors of `differs`, which must differ (or the excuse is stale)."""
    a, b = contents(ours), contents(theirs)
    different = {k for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
    unexpected = different - (differs or {}).keys()
    assert not unexpected, {k: (short(a.get(k)), short(b.get(k))) for k in sorted(unexpected)}
    assert different == (differs or {}).keys(), "documented differences that are none"


def contents(path: Path) -> dict[str, Any]:
    """Every key as (types, value) and every tensor as (type, shape, bytes)."""
    reader = gguf.GGUFReader(path)
    found: dict[str, Any] = {
        f.name: ([t.name for t in f.types], f.contents()) for f in reader.fields.values() if f.name[:5] != "GGUF."
    }
    for t in reader.tensors:
        assert t.name not in found
        found[t.name] = (t.tensor_type.name, t.shape.tolist(), np.ascontiguousarray(t.data).tobytes())
    return found


def short(value: Any) -> str:
    return str(value)[:200]


def test_oracle_covers_both_families_and_all_types() -> None:
    assert {c.family for c in CASES.values()} == {"dflash", "eagle3"}
    assert {c.outtype for c in CASES.values()} == {"f32", "f16", "bf16", "q8_0"}


TINY = Path(__file__).parents[2] / "models" / "tiny"
TINY_PAIRS = (("qwen3", "dflash"), ("qwen3", "eagle3"), ("qwen35", "dflash"))


def test_trained_tiny_pairs_equal_upstreams_files(tmp_path: Path, llama_cpp: Path) -> None:
    jobs = []
    for target, drafter in TINY_PAIRS:
        pre = name_from_tokenizer_json(TINY / target / "target" / "tokenizer.json")
        jobs.append([pre, str(TINY / target / drafter), "--target-model-dir", str(TINY / target / "target"),
                     "--outfile", str(tmp_path / f"theirs-{target}-{drafter}.gguf"), "--outtype", "bf16"])  # fmt: skip
    assert run_upstream(llama_cpp, jobs, tmp_path) == [None] * len(jobs)
    for target, drafter in TINY_PAIRS:
        ours = tmp_path / f"ours-{target}-{drafter}.gguf"
        convert(TINY / target / drafter, TINY / target / "target", ours, "bf16", llama_cpp=llama_cpp)
        assert_same_file(ours, tmp_path / f"theirs-{target}-{drafter}.gguf")
