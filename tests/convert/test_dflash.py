"""DFlash2, Muse-Glimmer, speculators' layout, biases and mask rows: against upstream's converter where it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import HIDDEN, MASK, VOCAB, Tensors, dflash_config, dflash_tensors, make_target, save
from dflash_checkpoints import (
    DRAFT_VOCAB,
    as_zlab,
    biased,
    dflash2_config,
    dflash2_tensors,
    muse_config,
    muse_tensors,
    speculators_config,
    speculators_tensors,
    target_with_weights,
)
from dflash_convert.cli import convert
from dflash_convert.families.gguf_drafter import read_gguf_drafter
from dflash_convert.gguf_file import read_gguf
from dflash_convert.target import read_target
from dflash_tools.errors import UserError
from test_oracle import LLAMA3, PER_LAYER, QWEN35, SAID, SLIDING, YARN, assert_same_file, contents, run_upstream

Config = dict[str, Any]
ROW = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(5))
NO_LAYERS = "could not find any of: ['n_layers', 'num_hidden_layers'"


@dataclass
class Case:
    """`differs`: keys and tensors that differ on purpose, with the reason; `fails`: how upstream's converter ends."""

    config: Config
    make: Callable[..., Tensors] = dflash2_tensors
    target: Config = field(default_factory=dict)
    outtype: str = "bf16"
    edit: Callable[[Path, Tensors], Tensors] = lambda directory, tensors: tensors
    differs: dict[str, str] = field(default_factory=dict)
    fails: str | None = None


def with_mask_row(directory: Path, tensors: Tensors) -> Tensors:
    torch.save({"mask_token_id": MASK, "embedding": ROW}, directory / "mask_embedding.pt")
    return tensors


def with_row_beyond(directory: Path, tensors: Tensors) -> Tensors:
    torch.save({"mask_embedding": ROW}, directory / "mask_embedding.pt")
    return tensors


def with_biases(directory: Path, tensors: Tensors) -> Tensors:
    return biased(tensors)


WEIGHTS = {"weights": True}
MUSE = {"architecture": "MuseGlimmerForConditionalGeneration", "model_type": "llama"}
CASES: dict[str, Case] = {
    **{f"dflash2, {outtype}": Case(dflash2_config(), outtype=outtype) for outtype in ("f32", "f16", "bf16", "q8_0")},
    "dflash2 as published": Case(
        dflash2_config({"block_size": 8}, **SLIDING | {"layer_types": ["sliding_attention"] * 2}, is_causal=False,
                       block_size=None)
    ),
    "dflash2, scaled and capped logits": Case(
        dflash2_config({"output_multiplier": 0.19611613513818404, "final_logit_softcapping": 20.0})
    ),
    "dflash2, m-rope target": Case(dflash2_config(), target=QWEN35),
    "dflash2, sliding and full layers": Case(dflash2_config(**SLIDING), differs=PER_LAYER),
    "llama3 rope, m-rope target": Case(
        dflash_config(rope_scaling=LLAMA3), dflash_tensors, QWEN35,
        differs={"rope_freqs.weight": "upstream drops llama3 scaling of a DFlash drafter: every draft is wrong"},
    ),
    "muse": Case(
        muse_config(), muse_tensors, MUSE,
        differs=SAID
        | {f"tokenizer.ggml.token{k}": "upstream leaves the target's padding tokens out" for k in ("s", "_type")},
    ),
    "muse, own vocabulary stated": Case({**muse_config(), "vocab_size": VOCAB}, muse_tensors, MUSE, differs=SAID),
    "biases": Case(dflash_config(attention_bias=True), dflash_tensors, edit=with_biases),
    "biases, interleaved rope": Case(
        dflash_config(attention_bias=True, rope_is_neox_style=False), dflash_tensors, edit=with_biases,
        differs={f"blk.{i}.attn_{n}.bias": "upstream reorders the rows of weights only" for i in (0, 1) for n in "qk"},
    ),
    "mask row": Case(dflash_config(), dflash_tensors, WEIGHTS, edit=with_mask_row),
    "mask row, f16": Case(dflash_config(), dflash_tensors, WEIGHTS, "f16", with_mask_row),
    "mask row, tied target": Case(
        dflash_config(), dflash_tensors, {**WEIGHTS, "tie_word_embeddings": True}, edit=with_mask_row
    ),
    "mimo": Case(
        dflash_config(
            dflash_config={"mask_token_id": MASK, "target_layer_ids": [0, 2, 5], "use_swa": True, "swa_window_size": 32,
                           "attention_value_scale": 0.612},
            partial_rotary_factor=0.5,
        ),
        dflash_tensors, WEIGHTS, edit=with_mask_row, differs=SAID,
    ),
    "alpamayo": Case(
        dflash_config(dflash_config=None, mask_token_id=VOCAB, target_layer_ids=[0, 2, 5]), dflash_tensors, WEIGHTS,
        edit=with_row_beyond, fails="mask_embedding.pt mask_token_id does not match dflash_config",
    ),
    "speculators": Case(speculators_config(), speculators_tensors, fails=NO_LAYERS),
    "speculators, drafting from the anchor on": Case(
        speculators_config(sample_from_anchor=True), speculators_tensors, fails=NO_LAYERS
    ),
    "speculators, dflash2": Case(speculators_config(True), speculators_tensors, fails=NO_LAYERS),
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
    root = tmp_path_factory.mktemp("dflash")
    targets: dict[str, Path] = {}
    found, jobs = {}, []
    for i, (name, case) in enumerate(CASES.items()):
        key = str(case.target)
        if key not in targets:
            options = {k: v for k, v in case.target.items() if k != "weights"}
            make = target_with_weights if "weights" in case.target else make_target
            targets[key] = make(root / f"target{len(targets)}", **options)
        directory = root / f"{i}" / "Some-Drafter-0.1B"
        directory.mkdir(parents=True)
        save(directory, case.config, case.edit(directory, case.make(case.config, i)))
        pair = Pair(directory, targets[key], root / f"ours-{i}.gguf", root / f"theirs-{i}.gguf")
        jobs.append(["qwen2", str(directory), "--target-model-dir", str(pair.target),
                     "--outfile", str(pair.theirs), "--outtype", case.outtype])  # fmt: skip
        found[name] = pair
    for pair, error in zip(found.values(), run_upstream(llama_cpp, jobs, root), strict=True):
        pair.error = error
    return found


# the row of docs/formats.md that a case speaks for
ROWS = {
    "dflash2 as published": "DFlash2 (z-lab)",
    "dflash2, scaled and capped logits": "DFlash2 (z-lab), scaled and capped logits",
    "dflash2, sliding and full layers": "DFlash2 (z-lab), sliding and full layers",
    "muse, own vocabulary stated": "Muse-Glimmer assistant",
    "biases": "DFlash (z-lab), attention biases",
    "mimo": "DFlash (MiMo)",
    "alpamayo": "DFlash (Alpamayo)",
    "speculators, drafting from the anchor on": "DFlash (speculators), sample_from_anchor",
    "speculators, dflash2": "DFlash2 (speculators)",
}


def marked(name: str) -> Any:
    case, upstream = CASES[name], "the same file"
    if case.fails is not None:
        upstream = "converter fails"
    elif "biases" in name:
        upstream = "the same file; not loaded"  # tests/parity/test_upstream_today.py
    elif case.differs == PER_LAYER:
        upstream = "its file lacks the causality of sliding layers"
    elif case.differs:
        upstream = "the same but for one default"
    marks = [pytest.mark.family(ROWS[name], converts="yes", upstream=upstream)] if name in ROWS else []
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [marked(name) for name in CASES])
def test_file_equals_that_of_upstreams_converter(name: str, pairs: dict[str, Pair], llama_cpp: Path) -> None:
    case, pair = CASES[name], pairs[name]
    convert(pair.drafter, pair.target, pair.ours, case.outtype, llama_cpp=llama_cpp)
    if case.fails is None:
        assert pair.error is None
        assert_same_file(pair.ours, pair.theirs, case.differs)
    else:
        assert case.fails in (pair.error or "it works now")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("target"))


Convert = Callable[..., tuple[dict[str, Any], list[str]]]


@pytest.fixture
def converted(tmp_path: Path, target: Path, llama_cpp: Path) -> Convert:
    """Write a checkpoint, convert it to float32, and return what the file holds and what was noted."""
    count = iter(range(100))

    def run(config: Config, tensors: Tensors, to: Path = target, row: Any = None) -> tuple[dict[str, Any], list[str]]:
        place = tmp_path / str(next(count))
        save(place / "Some-Drafter-0.1B", config, tensors, torch.float32)
        if row is not None:
            torch.save(row, place / "Some-Drafter-0.1B" / "mask_embedding.pt")
        drafter, _, _ = convert(place / "Some-Drafter-0.1B", to, place / "d.gguf", "f32", llama_cpp=llama_cpp)
        assert sorted(p.name for p in place.iterdir()) == ["Some-Drafter-0.1B", "d.gguf"]
        return contents(place / "d.gguf"), drafter.notes

    return run


@pytest.mark.family("DFlash (speculators)", converts="yes", upstream="converter fails")
@pytest.mark.parametrize("second", [False, True])
def test_speculators_file_is_that_of_the_same_network_in_zlabs_layout(second: bool, converted: Convert) -> None:
    config = speculators_config(second)
    flat = as_zlab(config) | ({"is_causal": False} if second else {})
    file, _ = converted(config, speculators_tensors(config))
    same, _ = converted(flat, speculators_tensors(config))
    same.pop("dflash.attention.causal", None)  # said here, and the default where it is not
    assert file == same
    assert file["dflash.target_layers"][1] == [1, 3, 6]


@pytest.mark.family("DFlash (speculators), reduced vocabulary", converts="yes", upstream="converter fails")
def test_reduced_vocabulary_is_written_with_absolute_ids(converted: Convert) -> None:
    config = speculators_config(draft_vocab_size=DRAFT_VOCAB)
    tensors = speculators_tensors(config)
    file, _ = converted(config, tensors)
    ids = (tensors["d2t"] + torch.arange(DRAFT_VOCAB)).numpy()
    assert file["d2t"] == ("I64", [DRAFT_VOCAB], ids.tobytes())
    assert file["output.weight"] == ("F32", [HIDDEN, DRAFT_VOCAB], tensors["lm_head.weight"].numpy().tobytes())
    assert "token_embd.weight" not in file and "t2d" not in file


def test_causality_of_speculators_follows_its_training(converted: Convert) -> None:
    mixed = {**SLIDING, "sliding_window": 64}
    for config, key, value in (
        (speculators_config(**mixed), "causal_pattern", [True, False]),
        (speculators_config(**mixed | {"layer_types": ["sliding_attention"] * 2}), "causal", True),
        (speculators_config(**mixed, sliding_window_non_causal=True), "causal", False),
        (speculators_config(True, **mixed), "causal", False),
        (speculators_config(True, **mixed, sliding_window_non_causal=False), "causal_pattern", [True, False]),
        (speculators_config(**mixed | {"use_sliding_window": False}), None, None),
    ):
        file, _ = converted(config, speculators_tensors(config))
        found = {k: v[1] for k, v in file.items() if k.startswith("dflash.attention.causal")}
        assert found == ({f"dflash.attention.{key}": value} if key else {})


def test_of_ropes_for_each_kind_of_layer_speculators_runs_the_sliding_ones(converted: Convert) -> None:
    ropes = {kind: {"rope_type": "default", "rope_theta": theta}
             for kind, theta in (("full_attention", 5e6), ("sliding_attention", 2e4))}  # fmt: skip
    config = speculators_config(rope_parameters=ropes)
    del config["transformer_layer_config"]["rope_theta"]
    file, _ = converted(config, speculators_tensors(config))
    assert file["dflash.rope.freq_base"][1] == 2e4


def test_layers_without_a_window_are_parted_by_one_that_hides_nothing(converted: Convert) -> None:
    config = dflash_config(**SLIDING | {"use_sliding_window": False})
    file, _ = converted(config, dflash_tensors(config))
    assert file["dflash.attention.sliding_window_pattern"][1] == [True, False]
    assert file["dflash.attention.sliding_window"][1] >= 1 << 20
    assert file["dflash.attention.causal_pattern"][1] == [True, False]


def test_usual_taps_of_speculators_are_mentioned(converted: Convert) -> None:
    config = speculators_config()
    tensors = speculators_tensors(config)
    file, notes = converted({**config, "aux_hidden_state_layer_ids": None}, tensors)
    assert file["dflash.target_layers"][1] == [2, 4, 5]
    assert any("[2, 4, 5]" in note for note in notes)


def test_muse_takes_the_defaults_of_transformers(converted: Convert) -> None:
    config = muse_config(sliding_window=None, layer_types=None, rope_parameters=None, block_size=None)
    file, _ = converted(config, muse_tensors(muse_config()))
    assert file["dflash.attention.sliding_window"][1] == 2048
    assert file["dflash.attention.sliding_window_pattern"][1] == [True, True]
    assert file["dflash.block_size"][1] == 16 and file["dflash.rope.freq_base"][1] == 500000.0
    assert file["dflash.attention.causal"][1] is False


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return target_with_weights(tmp_path_factory.mktemp("weighted"))


@pytest.mark.parametrize("entry", [
    {"mask_embedding": ROW}, {"whatever": ROW.bfloat16()}, ROW[None], {"embedding": torch.nn.Parameter(ROW)},
    {"mask_token_id": torch.tensor(MASK), "embedding": ROW.double()},
], ids=["named", "only entry", "bare", "parameter", "id as tensor"])  # fmt: skip
def test_mask_row_is_found_however_it_is_stored(entry: Any, converted: Convert, weighted: Path) -> None:
    file, notes = converted(dflash_config(), dflash_tensors(dflash_config()), weighted, entry)
    table = np.frombuffer(file["token_embd.weight"][2], np.float32).reshape(VOCAB, HIDDEN)
    want = ROW.bfloat16().float().numpy()  # in the type of the target's table
    assert np.array_equal(table[MASK], want) and not np.array_equal(table[MASK - 1], want)
    assert "output.weight" in file and any("row for the mask token" in note for note in notes)


@pytest.mark.family("DFlash (Alpamayo)", converts="yes")
def test_mask_token_beyond_the_target_takes_the_row_of_the_end_of_text(converted: Convert, weighted: Path) -> None:
    config = dflash_config(dflash_config=None, mask_token_id=VOCAB, target_layer_ids=[0, 2, 5])
    file, notes = converted(config, dflash_tensors(config), weighted, {"mask_embedding": ROW})
    table = np.frombuffer(file["token_embd.weight"][2], np.float32).reshape(VOCAB, HIDDEN)
    assert file["tokenizer.ggml.mask_token_id"][1] == 2
    assert np.array_equal(table[2], ROW.bfloat16().float().numpy())
    assert any(f"mask token {VOCAB} is beyond" in note for note in notes)


def test_mask_token_that_only_the_target_knows_is_taken(converted: Convert) -> None:
    config = dflash_config(vocab_size=MASK)
    file, notes = converted(config, dflash_tensors(config))
    assert file["tokenizer.ggml.mask_token_id"][1] == MASK
    assert any(f"one of the target's {VOCAB}" in note for note in notes)


def test_gguf_of_a_gemma_target_gets_its_scale(target: Path, tmp_path: Path, llama_cpp: Path) -> None:
    old = tmp_path / "old.gguf"
    convert(save(tmp_path / "d", dflash_config(), dflash_tensors(dflash_config())), target, old, llama_cpp=llama_cpp)
    for architecture, scale in (("gemma4", 8.0), ("Gemma3ForConditionalGeneration", 8.0), ("qwen3", None)):
        gemma = replace(read_target(target), architecture=architecture)
        drafter, changes = read_gguf_drafter(old, read_gguf(old), gemma)
        found = drafter.extra.get("embedding_scale")
        assert (found.value if found else None) == scale and bool(changes) == bool(scale)


Refuse = Callable[..., None]


@pytest.fixture
def refuse(tmp_path: Path, target: Path, llama_cpp: Path) -> Refuse:
    """Expect an error that contains each of `parts`, and nothing written."""

    def check(config: Config, tensors: Tensors, *parts: str, to: Path = target, row: Any = None) -> None:
        directory = save(tmp_path / "drafter", config, tensors)
        if row is not None:
            torch.save(row, directory / "mask_embedding.pt")
        before = sorted(tmp_path.iterdir())
        with pytest.raises(UserError) as e:
            convert(directory, to, tmp_path / "d.gguf", llama_cpp=llama_cpp)
        for part in parts:
            assert part in str(e.value), f"{part!r} not in: {e.value}"
        assert sorted(tmp_path.iterdir()) == before

    return check


@pytest.mark.parametrize(("row", "part"), [
    ({"mask_token_id": MASK - 1, "embedding": ROW}, f"mask_token_id is {MASK - 1}"),
    ({"embedding": ROW[:-1]}, f"embedding is F32 ({HIDDEN - 1})"),
    ({"embedding": ROW.view(2, -1)}, f"embedding is F32 (2, {HIDDEN // 2})"),
    ({"embedding": ROW.long()}, "embedding is I64"),
    ({"one": ROW, "two": ROW}, "holds one, two"),
    ({}, "holds nothing"),
    ({"embedding": "a row"}, "is a str"),
    ({"embedding": ROW, "mask_token_id": "five"}, "mask_token_id is a str"),
    ({"embedding": torch.full((HIDDEN,), float("nan"))}, "embedding holds nan"),
], ids=str)  # fmt: skip
def test_odd_mask_rows_are_refused(row: Any, part: str, refuse: Refuse, weighted: Path) -> None:
    refuse(dflash_config(), dflash_tensors(dflash_config()), "mask_embedding.pt", part, to=weighted, row=row)


def test_mask_row_that_is_no_data_is_refused_and_not_run(tmp_path: Path, weighted: Path) -> None:
    directory = save(tmp_path / "drafter", dflash_config(), dflash_tensors(dflash_config()))
    torch.save({"embedding": Trap(tmp_path / "ran")}, directory / "mask_embedding.pt")
    with pytest.raises(UserError, match="weights_only"):
        convert(directory, weighted, tmp_path / "d.gguf")
    assert not (tmp_path / "ran").exists()


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_mask_row_needs_the_targets_weights(refuse: Refuse) -> None:
    row = {"embedding": ROW}
    refuse(dflash_config(), dflash_tensors(dflash_config()), "has none here unquantised", "HF directory", row=row)


def test_mask_token_beyond_the_vocabulary_needs_a_row_and_a_place(refuse: Refuse, tmp_path: Path) -> None:
    config = dflash_config(dflash_config={"mask_token_id": VOCAB, "target_layer_ids": [0, 2, 5]})
    tensors = dflash_tensors(config)
    refuse(config, tensors, f"mask_token_id is {VOCAB}", "no mask_embedding.pt")
    nowhere = target_with_weights(tmp_path / "nowhere", eos_token_id=None)
    refuse(config, tensors, "names no end-of-text token", to=nowhere, row={"embedding": ROW})


@pytest.mark.parametrize(("nested", "tensors", "parts"), [
    ({"conv_group_size": 24}, {}, ("conv_group_size is 24", "does not divide hidden_size (64)")),
    ({"selector_top_k": 8}, {}, ("selector_top_k is 8", "hidden_size (64)")),
    ({"selector_rank": None}, {}, ("dflash_config.selector_rank is missing",)),
    ({"conv_kernel_size": 3}, {}, ("attention_conv.base_kernel is (2, 2, 64), the config calls for (2, 3, 64)",)),
    ({}, {"candidate_selector.successor_codebook": None}, ("missing: candidate_selector.successor_codebook (320,",)),
    ({}, {"layers.1.mlp_conv.base_kernel": None}, ("missing: layers.1.mlp_conv.base_kernel (2, 2, 64)",)),
    ({}, {"candidate_selector.gate.weight": torch.zeros(4)}, ("not part of this family: candidate_selector.gate",)),
])  # fmt: skip
def test_incomplete_dflash2_is_refused(nested: Config, tensors: Tensors, parts: Any, refuse: Refuse) -> None:
    found = {**dflash2_tensors(dflash2_config()), **tensors}
    refuse(dflash2_config(nested), {n: t for n, t in found.items() if t is not None}, *parts)


def test_dflash2_needs_the_whole_vocabulary_and_the_bonus_anchor(refuse: Refuse) -> None:
    whole = speculators_config(True)
    refuse(speculators_config(True, draft_vocab_size=DRAFT_VOCAB), speculators_tensors(whole), "whole vocabulary")
    refuse(speculators_config(True, sample_from_anchor=True), speculators_tensors(whole), "sample_from_anchor is true")


def test_taps_of_speculators_are_checked_as_inputs(refuse: Refuse) -> None:
    config = speculators_config(aux_hidden_state_layer_ids=[1, 3, 9])
    refuse(config, speculators_tensors(config), "input of layer 9", "0 to 8")


def test_d2t_of_speculators_is_checked(refuse: Refuse) -> None:
    config = speculators_config(draft_vocab_size=DRAFT_VOCAB)
    tensors = speculators_tensors(config)
    refuse(config, tensors | {"d2t": tensors["d2t"] + torch.arange(DRAFT_VOCAB)}, "the ids themselves")
    refuse(config, {n: t for n, t in tensors.items() if n != "d2t"}, f"missing: d2t ({DRAFT_VOCAB})")


def test_rope_that_no_key_can_say_is_refused(refuse: Refuse) -> None:
    config = speculators_config(rope_parameters={**YARN, "rope_theta": 1e4, "rope_type": "longrope"})
    refuse(config, speculators_tensors(config), "longrope")


def test_muse_without_its_encoder_is_refused(refuse: Refuse) -> None:
    tensors = muse_tensors(muse_config())
    del tensors["encoder.output_norm_enc.weight"]
    refuse(muse_config(), tensors, "missing: hidden_norm.weight")
