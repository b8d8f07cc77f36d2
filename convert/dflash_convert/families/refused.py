"""Families that are recognised and not read: each with the mark that tells it and the reason.

A mark is a key of the config (at the top level or in a section a family keeps its keys in), the beginning of a tensor's
name without `model.`, or an architecture's name.
"""

from __future__ import annotations

from dataclasses import dataclass

from dflash_tools.errors import UserError

from dflash_convert.checkpoint import Checkpoint

_SECTIONS = ("dflash_config", "dspark_config", "eagle_config")


@dataclass(frozen=True)
class Refused:
    """`name` completes "this is ..."; `why` completes "which ..."."""

    name: str
    why: str
    keys: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()


REFUSED: tuple[Refused, ...] = (
    Refused(
        "a drafter in the layout of speculators",
        "is not read yet",
        keys=("transformer_layer_config", "speculators_model_type"),
    ),
    Refused(
        "DFlash2",
        "is not read yet",
        keys=("conv_kernel_size", "selector_rank"),
        tensors=("candidate_selector.", "layers.0.attention_conv."),
    ),
    Refused(
        "DSpark",
        "is not read yet",
        keys=("markov_rank", "dspark_config"),
        tensors=("markov_head.", "confidence_head."),
    ),
    Refused("Domino", "is not read yet", tensors=("prefix_gru", "embed_proj")),
    Refused("Muse-Glimmer", "is not read yet", tensors=("encoder.fc.",)),
)


def refuse_if_known(checkpoint: Checkpoint, known: str) -> None:
    """Raises UserError with the reason if the checkpoint is of a family that cannot run; `known` ends the message."""
    config = checkpoint.config
    sections = [config, *(config.section(s) for s in _SECTIONS)]
    names = sorted(n.removeprefix("model.") for n in checkpoint.tensors)
    architecture = next(iter(config.strings("architectures")), None)
    for family in REFUSED:
        key = next((k for k in family.keys if any(s.has(k) for s in sections)), None)
        tensor = next((n for n in names if family.tensors and n.startswith(family.tensors)), None)
        if key:
            mark = f"{config.path.name} has {key}"
        elif tensor:
            mark = f"the weights have {tensor}"
        elif architecture in family.architectures:
            mark = f"{config.path.name} names {architecture}"
        else:
            continue
        raise UserError(f"{checkpoint.directory}: {mark}: this is {family.name}, which {family.why}. {known}")
