"""EAGLE3 as each producer writes it: the fork drafts what the formula gives for the same checkpoint.

The forms differ in what decides every draft: which layers are read, where the residual starts, norms before `fc`, rope,
and a width other than the target's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from old_gguf import rewrite
from parity_cases import TINY
from random_drafters import write_eagle3
from reference_eagle3 import Eagle3
from safetensors.torch import load_file, save_file

SEED = 41
IDS = "eagle_aux_hidden_state_layer_ids"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
OWN = {IDS, "draft_vocab_size", "norm_before_residual", "norm_before_fc", "target_hidden_size", "architectures"}


def renamed(folder: Path, old: str, new: str) -> None:
    """Tensors whose names begin otherwise."""
    weights = load_file(folder / "model.safetensors")
    save_file({n.replace(old, new): w for n, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def nested(folder: Path) -> None:
    """The flat config of `folder` as speculators nests it."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    inner = {k: v for k, v in config.items() if k not in OWN}
    outer = {k: v for k, v in config.items() if k in OWN}
    file.write_text(json.dumps({"speculators_model_type": "eagle3", "transformer_layer_config": inner, **outer}))
    renamed(folder, "midlayer.", "layers.0.")


@pytest.fixture
def eagle3(drafts, tmp_path):
    """Write a checkpoint, arrange it as a producer does, and compare what the fork drafts with the formula."""

    def run(arrange=lambda folder: None, edit=lambda path: None, **changes: Any):
        changes = {"own_embeddings": False, "full_vocabulary": False} | changes
        folder = write_eagle3(tmp_path / "hf", TINY / "qwen3" / "target", SEED, **changes)
        arrange(folder)
        model = Eagle3.load(folder)
        if (folder / "pytorch_model.bin").exists():
            (folder / "model.safetensors").unlink()
        gap = drafts("qwen3", folder, "eagle3", model, edit=edit)
        print(gap)
        return gap

    return run


def pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")


@pytest.mark.family("EAGLE3 (SafeAILab)", runs="yes", parity="≥ 40 blocks")
def test_pickled_checkpoint_of_safeailab(eagle3):
    eagle3(pickle, architectures=["LlamaForCausalLM"], head_dim=16).check()


@pytest.mark.family("EAGLE3 (vLLM, AngelSlim)", runs="yes", parity="≥ 40 blocks")
def test_ids_of_inputs_and_yarn_in_vllms_layout(eagle3):
    arrange = lambda folder: renamed(folder, "midlayer.", "layers.0.")  # noqa: E731
    names = {"architectures": ["Eagle3LlamaForCausalLM"], IDS: [1, 4, 5], "rope_scaling": YARN}
    eagle3(arrange, own_embeddings=True, **names).check()


@pytest.mark.family("EAGLE3 (SpecForge)", runs="yes", parity="≥ 40 blocks")
def test_ids_of_outputs_in_specforges_layout(eagle3):
    """Upstream's converter writes the usual layers instead, with which no draft is right."""
    eagle3(eagle_config={IDS: [0, 2, 4], "use_aux_hidden_state": True}).check()


def test_the_usual_layers_instead_of_specforges_draft_something_else(eagle3):
    def usual(path: Path) -> None:
        other = rewrite(path, path.with_name("usual.gguf"), keys={"eagle3.target_layers": [2, 3, 3]})
        assert gguf.GGUFReader(path).fields["eagle3.target_layers"].contents() == [1, 3, 5]
        other.replace(path)

    gap = eagle3(eagle_config={IDS: [0, 2, 4]}, edit=usual)
    assert gap.same_draft < gap.blocks / 2, gap


@pytest.mark.family("EAGLE3 (NVIDIA ModelOpt)", runs="yes", parity="≥ 40 blocks")
@pytest.mark.family("EAGLE3, partial rotation", runs="yes", parity="≥ 40 blocks")
def test_norm_before_fc_in_modelopts_eagle_config_and_partial_rotation(eagle3):
    names = {"eagle_config": {IDS: [1, 2, 3], "norm_before_fc": True}, "partial_rotary_factor": 0.5}
    eagle3(full_vocabulary=True, **names).check()


@pytest.mark.family("EAGLE3 (speculators)", runs="yes", parity="≥ 40 blocks")
@pytest.mark.family("EAGLE3 (speculators), norm_before_residual unsaid", runs="yes", parity="≥ 40 blocks")
def test_nested_config_of_speculators_with_llama3_rope(eagle3):
    """The residual is unsaid: taken as trained."""
    names = {"architectures": ["Eagle3DraftModel"], IDS: [1, 4, 5], "rope_scaling": LLAMA3}
    eagle3(nested, own_embeddings=True, **names).check()


@pytest.mark.family("EAGLE3 (speculators), Qwen3 layers", runs="yes", parity="≥ 40 blocks")
def test_norms_of_queries_and_keys_and_the_state_after_the_last_layer(eagle3):
    """That state is meant before the final norm: speculators and vLLM norm it for the head alone."""
    names = {"architectures": ["Eagle3DraftModel"], "model_type": "qwen3", IDS: [1, 4, 6]}
    # the last layer's outputs are large, and a chain of seven drafts feeds on itself: 1.7e-3 measured
    eagle3(nested, own_embeddings=True, norm_before_residual=True, **names).check(logit=5e-3)


@pytest.mark.family("EAGLE3 (DeepSpec)", runs="yes", parity="≥ 40 blocks")
def test_five_taps_of_deepspec(eagle3):
    names = {"architectures": ["Qwen3Eagle3Model"], "model_type": "qwen3", "target_layer_ids": [0, 1, 2, 3, 4]}
    arrange = lambda folder: renamed(folder, "midlayer.", "layers.0.")  # noqa: E731
    eagle3(arrange, own_embeddings=True, full_vocabulary=True, **names).check()


@pytest.mark.family("EAGLE3, another width than its target", runs="yes", parity="≥ 40 blocks")
def test_drafter_narrower_than_its_target(eagle3):
    eagle3(own_embeddings=True, hidden_size=128, target_hidden_size=256).check()
