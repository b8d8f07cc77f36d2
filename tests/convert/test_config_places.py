"""Keys that stand in several places of a config: which holds, and that the conversion says what the others said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    HIDDEN,
    MASK,
    VOCAB,
    Tensors,
    dflash_config,
    dflash_tensors,
    eagle3_config,
    eagle3_tensors,
    make_target,
    save,
)
from dflash_checkpoints import speculators_config, speculators_tensors
from dflash_convert.checkpoint import open_checkpoint
from dflash_convert.drafter import Drafter
from dflash_convert.families import read_drafter
from dflash_convert.target import Target, read_target
from dspark_checkpoints import dspark_tensors, specforge

IDS = "eagle_aux_hidden_state_layer_ids"
SECTION = "transformer_layer_config"
LINEAR, PLAIN = {"rope_type": "linear", "factor": 2.0}, {"rope_type": "default", "rope_theta": 1e6}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return read_target(make_target(tmp_path_factory.mktemp("target")))


@pytest.fixture
def read(tmp_path: Path, target: Target) -> Any:
    """`read(config, tensors)`: the description of a drafter for a target of eight layers."""

    def run(config: dict[str, Any], tensors: Tensors) -> Drafter:
        return read_drafter(open_checkpoint(save(tmp_path / "drafter", config, tensors)), target)

    return run


def zlab(nested: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    return dflash_config(dflash_config={"mask_token_id": MASK, "target_layer_ids": [0, 2, 5], **(nested or {})}, **top)


def said(drafter: Drafter, *parts: str) -> bool:
    """Whether one note has all `parts`."""
    return any(all(part in note for part in parts) for note in drafter.notes)


@pytest.mark.parametrize(
    ("config", "holds", "notes"),
    [
        (zlab({"block_size": 6}, block_size=16), {"block_size": 6},
         ["dflash_config.block_size is 6", "top level says 16"]),
        (zlab(mask_token_id=3), {"mask_token_id": MASK}, [f"dflash_config.mask_token_id is {MASK}", "says 3"]),
        (zlab(target_layer_ids=[1, 2, 3]), {"taps": (1, 3, 6)}, ["[0, 2, 5] and holds", "says [1, 2, 3]"]),
        (zlab({"target_layer_ids": []}, target_layer_ids=[1, 2, 3]), {"taps": (2, 3, 4)},
         ["[1, 2, 3] and holds", "says []"]),
        (zlab(aux_hidden_state_layer_ids=[1, 2, 3]), {"taps": (1, 3, 6)}, ["inputs of layers", "[1, 3, 6] are tapped"]),
        (zlab({"num_hidden_layers": 5}), {"block_count": 2}, ["num_hidden_layers at the top level is 2", "says 5"]),
        (zlab({"sliding_window": 5}), {}, ["dflash_config.sliding_window is not read there"]),
        (zlab({"causal": True}, is_causal=False), {}, ["is_causal", "False and holds", "causal says True"]),
        (zlab({"use_swa": True, "swa_window_size": 8}, sliding_window=9, use_sliding_window=True), {},
         ["swa_window_size is 8", "sliding_window says 9"]),
        (zlab({"use_swa": True, "swa_window_size": 8}, layer_types=["full_attention"] * 2), {},
         ["use_swa", "layer_types"]),
        (zlab(rope_parameters=PLAIN, rope_theta=2e6), {},
         ["rope_parameters.rope_theta is 1000000.0", "says 2000000.0"]),
        (zlab(rope_scaling=LINEAR, rope_parameters=PLAIN), {}, ["rope_scaling holds", "rope_theta and rope_type"]),
    ],
)  # fmt: skip
def test_of_flat_keys_those_in_the_section_hold(
    config: dict[str, Any], holds: dict[str, Any], notes: list[str], read: Any
) -> None:
    drafter = read(config, dflash_tensors(dflash_config()))
    assert said(drafter, *notes), drafter.notes
    assert {name: getattr(drafter, name) for name in holds} == holds


def test_layer_that_is_tapped_twice_is_warned_about(read: Any) -> None:
    drafter = read(zlab({"target_layer_ids": [2, 2, 5]}), dflash_tensors(dflash_config()))
    assert drafter.taps == (3, 3, 6) and "layer 3 is tapped more than once" in drafter.warnings[0]


@pytest.mark.parametrize("config", [zlab({"sample_from_anchor": True}), zlab(sample_from_anchor=True)])
def test_flat_file_that_drafts_from_the_anchor_on_does_so(config: dict[str, Any], read: Any) -> None:
    drafter = read(config, dflash_tensors(dflash_config()))
    assert drafter.extra["sample_from_anchor"].value is True
    assert {"markov_w1.weight", "markov_w2.weight"} <= {t.name for t in drafter.tensors}


@pytest.mark.parametrize("config", [
    zlab(),
    zlab({"block_size": 8}, mask_token_id=MASK, target_layer_ids=[0, 2, 5], aux_hidden_state_layer_ids=[1, 3, 6]),
    zlab({"target_layer_ids": None}, target_layer_ids=[0, 2, 5]),
    zlab({"causal": True}, is_causal=True),
    zlab(rope_parameters=PLAIN),
    zlab(rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters={**LINEAR, "rope_theta": None}),
])  # fmt: skip
def test_places_that_agree_are_not_mentioned(config: dict[str, Any], read: Any) -> None:
    assert read(config, dflash_tensors(dflash_config())).notes == []


def test_of_two_sections_dflash_config_holds(read: Any) -> None:
    config = specforge(dspark_config={"mask_token_id": 5, "markov_rank": 8})
    drafter = read(config, dspark_tensors(config))
    assert drafter.mask_token_id == MASK
    assert said(drafter, f"dflash_config.mask_token_id is {MASK}", "dspark_config.mask_token_id says 5")


def test_empty_list_of_inputs_leaves_dspark_its_outputs(read: Any) -> None:
    config = specforge(aux_hidden_state_layer_ids=[])
    drafter = read(config, dspark_tensors(config))
    assert drafter.taps == tuple(i + 1 for i in config["dflash_config"]["target_layer_ids"])
    assert drafter.extra["sample_from_anchor"].value is True


def test_speculators_reads_the_transformer_in_its_section_and_the_drafter_at_the_top(read: Any) -> None:
    config = speculators_config()
    config["num_hidden_layers"], config["rope_theta"] = 3, 5.0
    config |= {"is_causal": True, "dflash_config": {"block_size": 4}}
    config[SECTION] |= {"block_size": 16, "sliding_window_non_causal": True}
    drafter = read(config, speculators_tensors(speculators_config()))
    assert (drafter.block_count, drafter.block_size) == (2, 8)
    assert said(drafter, f"{SECTION}.num_hidden_layers is 2 and holds", "at the top level says 3")
    assert said(drafter, f"{SECTION}.rope_theta is 1000000.0 and holds", "at the top level says 5.0")
    assert said(drafter, "block_size at the top level is 8", f"{SECTION}.block_size says 16")
    assert said(drafter, "block_size at the top level is 8", "dflash_config.block_size says 4")
    assert said(drafter, f"{SECTION}.sliding_window_non_causal is not read there")
    assert said(drafter, "is_causal at the top level is not read there")


def test_copies_that_speculators_does_not_run_are_named(read: Any) -> None:
    config = speculators_config()
    tensors = speculators_tensors(config)
    assert not said(read(config, tensors), "left out")
    copies = {f"{name}.weight": torch.ones(VOCAB, HIDDEN) for name in ("embed_tokens", "lm_head", "verifier_lm_head")}
    drafter = read(config, {**tensors, **copies, "verifier_norm.weight": torch.ones(HIDDEN)})
    names = "embed_tokens.weight, lm_head.weight, verifier_lm_head.weight and verifier_norm.weight"
    assert said(drafter, f"{names} left out")
    assert not {"token_embd.weight", "output.weight"} & {t.name for t in drafter.tensors}


@pytest.mark.parametrize(
    ("config", "taps", "notes"),
    [
        ({IDS: [3, 4, 5], "eagle_config": {IDS: [0, 1, 2]}}, (3, 4, 5),
         [f"eagle_config.{IDS}", "[1, 2, 3]", "--taps 1,2,3"]),
        ({IDS: [3, 4, 5], "eagle_config": {IDS: [3, 4, 5]}}, (3, 4, 5),
         [f"{IDS} at the top level holds", "--taps 4,5,6"]),
        ({"eagle_config": {IDS: [0, 1, 2], "layer_ids": [0, 1, 2]}}, (1, 2, 3),
         ["layer_ids", "[0, 1, 2]", "--taps 0,1,2"]),
        ({"norm_before_residual": True, "eagle_config": {"norm_before_residual": False}}, (2, 4, 5),
         ["eagle_config.norm_before_residual is False and holds", "at the top level says True"]),
        ({"eagle_config": {"draft_vocab_size": 64}}, (2, 4, 5),
         ["draft_vocab_size at the top level is 128", "says 64"]),
    ],
)  # fmt: skip
def test_eagle3_says_which_ids_and_flags_hold(
    config: dict[str, Any], taps: tuple[int, ...], notes: list[str], read: Any
) -> None:
    drafter = read(eagle3_config(**config), eagle3_tensors(eagle3_config()))
    assert drafter.taps == taps and said(drafter, *notes), drafter.notes


def test_eagle3_ids_that_mean_the_same_are_not_mentioned(read: Any) -> None:
    config = eagle3_config(**{IDS: [1, 2, 3], "eagle_config": {IDS: [0, 1, 2], "layer_ids": [1, 2, 3]}})
    assert read(config, eagle3_tensors(eagle3_config())).notes == []
