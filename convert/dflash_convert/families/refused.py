"""Families that are recognised and cannot run: each with the mark that tells it and the reason.

A mark is the value of a key of the config (at the top level or in a section a family keeps its keys in), a part of a
tensor's name, or an architecture's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dflash_tools.errors import UserError

from dflash_convert.checkpoint import Checkpoint
from dflash_convert.jsonfile import Config

_SECTIONS = ("dflash_config", "dspark_config", "eagle_config", "transformer_layer_config", "speculators_config")
_MLA = "computes keys and values from a shared latent (MLA), which no drafter of llama.cpp does"


@dataclass(frozen=True)
class Refused:
    """`name` completes "this is ..."; `why` completes "which ...".

    values: pairs of key and value, compared without regard to case; tensors: parts of names; architectures: whole ones.
    """

    name: str
    why: str
    values: tuple[tuple[str, str], ...] = ()
    tensors: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()


def _speculators(kind: str) -> tuple[tuple[str, str], ...]:
    return (("speculators_model_type", kind), ("algorithm", kind))


REFUSED: tuple[Refused, ...] = (
    Refused(
        "Domino",
        "runs a recurrent network over the drafted prefix between the slots of a block; llama.cpp has no graph for it",
        values=(("projector_type", "domino"),),
        tensors=("prefix_gru", "embed_proj."),
    ),
    Refused(
        "a drafter of Laguna",
        "gates its attention and norms every tapped layer by itself; llama.cpp's DFlash does neither",
        tensors=("aux_hidden_norms.", ".self_attn.g_proj."),
        architectures=("DFlashLagunaForCausalLM",),
    ),
    Refused(
        "LiLiCorr",
        "corrects its blocks with layers of its own, for which llama.cpp has no graph",
        values=(("projector_type", "lilicorr"),),
        architectures=("LiLiCorrDraftModel",),
    ),
    Refused(
        "JetSpec",
        "drafts trees with layers of its own, for which llama.cpp has no graph",
        values=(("projector_type", "jetspec"),),
        architectures=("JetSpecDraftModel",),
    ),
    Refused(
        "XPress",
        "drafts with layers of its own, for which llama.cpp has no graph",
        values=_speculators("xpress"),
        architectures=("XPressDraftModel", "Qwen3XPressModel", "XPressSpeculator"),
    ),
    Refused(
        "DFlash2 with a beam",
        "keeps several paths through a block; llama.cpp's selector walks one",
        architectures=("DFlash2BeamDraftModel",),
    ),
    Refused(
        "DFlash2 of MiniMax",
        "is built of MiniMax's layers; llama.cpp's DFlash2 has Qwen3's",
        architectures=("MiniMaxDFlash2DraftModel",),
    ),
    Refused(
        "P-EAGLE",
        "drafts all tokens at once from a mask state; llama.cpp's EAGLE3 drafts one after the other",
        values=_speculators("peagle"),
        tensors=("mask_hidden",),
        architectures=("PEagleDraftModel", "PEagleSpeculator"),
    ),
    Refused(
        "DSpark of DeepSeek-V4",
        "is part of its target's checkpoint: convert that with llama.cpp's own converter and --dspark",
        tensors=("mtp.0.hc_", "mtp.0.attn.wq_a", "mtp.0.e_proj"),
        architectures=("DeepseekV4ForCausalLM",),
    ),
    Refused(
        "a DSpark drafter with layers of its target",
        "llama.cpp's DSpark, built of Qwen3's, cannot run",
        architectures=(
            "K3DSparkModel",
            "MuseSparkDSparkModel",
            "Qwen3OmniDSparkModel",
            "DSparkMiniMaxDraftModel",
            "DSparkV41DraftModel",
        ),
    ),
    Refused(
        "EAGLE3 over Gemma 4's layers",
        "has other norms and activations than llama.cpp's EAGLE3",
        architectures=("Gemma4Eagle3Model",),
    ),
    Refused(
        "MTP",
        "belongs to its target: convert the target with its MTP layers and run it with --spec-type draft-mtp",
        values=_speculators("mtp"),
        architectures=("MTPDraftModel",),
    ),
    Refused(
        "a drafter with MLA",
        _MLA,
        tensors=(".self_attn.kv_a_proj_with_mqa.", ".self_attn.q_a_proj."),
        architectures=("Eagle3DeepseekV2ForCausalLM", "Eagle3DeepseekV3ForCausalLM"),
    ),
)


def refuse_if_known(checkpoint: Checkpoint, known: str) -> None:
    """Raises UserError with the reason if the checkpoint is of a family that cannot run; `known` ends the message."""
    config = checkpoint.config
    places = [config, *(config.section(s) for s in _SECTIONS)]
    names = sorted(checkpoint.tensors)
    architecture = next(iter(config.strings("architectures")), None)
    for family in REFUSED:
        if mark := _mark(family, places, names, architecture):
            raise UserError(f"{checkpoint.directory}: {mark}: this is {family.name}, which {family.why}. {known}")


def _mark(family: Refused, places: Sequence[Config], names: Sequence[str], architecture: str | None) -> str | None:
    """What tells that it is `family`, as a clause; None if nothing does."""
    file = places[0].path.name
    for key, value in family.values:
        if any(str(p.values.get(key)).lower() == value for p in places):
            return f"{file} has {key} {value!r}"
    if name := next((n for n in names if any(part in n for part in family.tensors)), None):
        return f"the weights have {name}"
    return f"{file} names {architecture}" if architecture in family.architectures else None
