"""The checkpoint families: what tells them apart, and their readers.

Names in `architectures` are not enough (`DFlashDraftModel` names several layouts), so content decides first: keys and
tensors that only one family has. The name must then agree, if the config gives one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dflash_tools.errors import UserError

from dflash_convert.checkpoint import Checkpoint
from dflash_convert.drafter import Drafter
from dflash_convert.families import dflash, eagle3
from dflash_convert.target import Target

KNOWN = (
    "DFlash (z-lab: DFlashDraftModel, flat config)",
    "EAGLE3 (SpecForge: LlamaForCausalLMEagle3; vLLM: Eagle3LlamaForCausalLM)",
)

# (marks: a key of the config or the beginning of a tensor's name) -> a family that is recognised but not read
_OTHERS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("a drafter in the layout of speculators", ("transformer_layer_config", "speculators_model_type"), ()),
    ("DFlash2", ("conv_kernel_size", "selector_rank"), ("candidate_selector.", "layers.0.attention_conv.")),
    ("DSpark", ("markov_rank", "dspark_config"), ("markov_head.", "confidence_head.")),
    ("Domino", (), ("prefix_gru", "embed_proj")),
    ("Muse-Glimmer", (), ("encoder.fc.",)),
)


@dataclass(frozen=True)
class Family:
    name: str
    architectures: frozenset[str]
    read: Callable[[Checkpoint, Target], Drafter]


_DFLASH = Family("DFlash", dflash.ARCHITECTURES, dflash.read)
_EAGLE3 = Family("EAGLE3", eagle3.ARCHITECTURES | {"LlamaForCausalLM"}, eagle3.read)


def read_drafter(checkpoint: Checkpoint, target: Target) -> Drafter:
    """Find the family of a checkpoint and read it. Raises UserError for unknown families, listing the known ones."""
    return find_family(checkpoint).read(checkpoint, target)


def find_family(checkpoint: Checkpoint) -> Family:
    """The family whose content this is. Raises UserError if there is none or the architecture's name contradicts it."""
    config = checkpoint.config
    names = {n.removeprefix("model.") for n in checkpoint.tensors}
    nested = config.section("dflash_config")
    for other, keys, prefixes in _OTHERS:
        key = next((k for k in keys if config.has(k) or nested.has(k)), None)
        tensor = next((n for n in sorted(names) if prefixes and n.startswith(prefixes)), None)
        if key or tensor:
            raise UserError(
                f"{checkpoint.directory}: {config.path.name if key else 'the weights'} "
                f"{'have' if tensor and not key else 'has'} {key or tensor}: this is {other}, which is not read yet. "
                f"{_known()}"
            )
    architecture = next(iter(config.strings("architectures")), None)
    family = _by_tensors(names) or _by_name(architecture)
    if family is None or (architecture is not None and architecture not in family.architectures):
        like = f" (its tensors look like {family.name})" if family else ""
        found = architecture or "missing"
        raise UserError(f"{config.where('architectures')} is {found}{like}; no drafter that is read here. {_known()}")
    return family


def _by_tensors(names: set[str]) -> Family | None:
    if "fc.weight" in names and any(n.startswith("midlayer.") or n == "layers.0.hidden_norm.weight" for n in names):
        return _EAGLE3
    return _DFLASH if {"fc.weight", "hidden_norm.weight"} <= names else None


def _by_name(architecture: str | None) -> Family | None:
    """For checkpoints with tensors missing: the reader then names them."""
    return next((f for f in (_DFLASH, _EAGLE3) if architecture in f.architectures - {"LlamaForCausalLM"}), None)


def _known() -> str:
    return "Known: " + "; ".join(KNOWN) + "."
