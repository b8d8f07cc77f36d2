"""Families that cannot run are told apart by name or content, and refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import dflash_config, dflash_tensors, eagle3_config, eagle3_tensors, make_target, save
from dflash_checkpoints import speculators_config
from dflash_convert.cli import convert
from dflash_convert.families.refused import REFUSED
from dflash_tools.errors import UserError

ONE = torch.zeros(1)


def named(architecture: str) -> dict[str, Any]:
    return dflash_config(architectures=[architecture])


def of_speculators(kind: str, architecture: str) -> dict[str, Any]:
    return speculators_config(speculators_model_type=kind, architectures=[architecture])


# family in the message, part of the reason, config, tensors besides DFlash's
CASES: list[tuple[str, str, dict[str, Any], dict[str, torch.Tensor]]] = [
    ("Domino", "recurrent network", dflash_config(projector_type="domino"), {}),
    ("Domino", "recurrent network", dflash_config(), {"prefix_gru.weight_ih_l0": ONE}),
    ("Domino", "recurrent network", dflash_config(), {"model.embed_proj.weight": ONE}),
    ("a drafter of Laguna", "gates its attention", named("DFlashLagunaForCausalLM"), {}),
    ("a drafter of Laguna", "gates its attention", dflash_config(), {"aux_hidden_norms.0.weight": ONE}),
    ("a drafter of Laguna", "gates its attention", dflash_config(), {"layers.0.self_attn.g_proj.weight": ONE}),
    ("LiLiCorr", "no graph", named("LiLiCorrDraftModel"), {}),
    ("JetSpec", "no graph", dflash_config(dflash_config={"projector_type": "JetSpec"}), {}),
    ("XPress", "no graph", of_speculators("xpress", "XPressDraftModel"), {}),
    ("XPress", "no graph", named("Qwen3XPressModel"), {}),
    ("DFlash2 with a beam", "walks one", named("DFlash2BeamDraftModel"), {}),
    ("DFlash2 of MiniMax", "MiniMax's layers", named("MiniMaxDFlash2DraftModel"), {}),
    ("P-EAGLE", "one after the other", of_speculators("peagle", "PEagleDraftModel"), {}),
    ("P-EAGLE", "one after the other", eagle3_config(), {"mask_hidden": ONE}),
    ("DSpark of DeepSeek-V4", "--dspark", named("DeepseekV4ForCausalLM"), {}),
    ("DSpark of DeepSeek-V4", "--dspark", {}, {"mtp.0.hc_attn_fn": ONE}),
    ("a DSpark drafter with layers of its target", "Qwen3's", named("K3DSparkModel"), {}),
    ("a DSpark drafter with layers of its target", "Qwen3's", named("MuseSparkDSparkModel"), {}),
    ("a DSpark drafter with layers of its target", "Qwen3's", named("DSparkV41DraftModel"), {}),
    ("EAGLE3 over Gemma 4's layers", "other norms", {**eagle3_config(), "architectures": ["Gemma4Eagle3Model"]}, {}),
    ("MTP", "draft-mtp", of_speculators("mtp", "MTPDraftModel"), {}),
    ("a drafter with MLA", "shared latent", eagle3_config(), {"midlayer.self_attn.kv_a_proj_with_mqa.weight": ONE}),
    ("a drafter with MLA", "shared latent", {**eagle3_config(), "architectures": ["Eagle3DeepseekV3ForCausalLM"]}, {}),
]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("target"))


@pytest.mark.parametrize(("family", "reason", "config", "tensors"), CASES)
def test_family_is_refused_with_its_reason(
    family: str, reason: str, config: dict[str, Any], tensors: dict[str, torch.Tensor], tmp_path: Path, target: Path
) -> None:
    eagle3 = config.get("model_type") == "llama"
    network = eagle3_tensors(eagle3_config()) if eagle3 else dflash_tensors(dflash_config())
    drafter = save(tmp_path / "drafter", config, network | tensors)
    with pytest.raises(UserError) as e:
        convert(drafter, target, tmp_path / "d.gguf")
    assert f"this is {family}, which" in str(e.value)
    assert reason in str(e.value) and "Known: " in str(e.value) and str(drafter) in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["drafter"]


def test_every_family_of_the_list_is_tried() -> None:
    assert {f.name for f in REFUSED} == {family for family, *_ in CASES}
