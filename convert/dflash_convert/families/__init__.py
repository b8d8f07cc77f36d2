"""The checkpoint families: what tells them apart, and their readers.

Names in `architectures` are not enough (`DFlashDraftModel` names several layouts), so content decides first: keys and
tensors that only one family has. The name must then agree, if the config gives one.
"""

from __future__ import annotations

from dflash_tools.errors import UserError, join_words

from dflash_convert.checkpoint import Checkpoint
from dflash_convert.drafter import Drafter
from dflash_convert.families import dflash, dflash2, dspark, dspark_gemma4, eagle3, muse
from dflash_convert.families.config_places import contradictions
from dflash_convert.families.family import Family
from dflash_convert.families.refused import refuse_if_known
from dflash_convert.target import Target

# The first that recognises a checkpoint reads it: the more special before the more general.
FAMILIES: tuple[Family, ...] = (
    eagle3.FAMILY,
    dflash2.FAMILY,
    muse.FAMILY,
    dspark_gemma4.FAMILY,
    dspark.FAMILY,
    dflash.SPECULATORS,
    dflash.FAMILY,
)
KNOWN = tuple(sorted(f.known for f in FAMILIES))


def read_drafter(checkpoint: Checkpoint, target: Target) -> Drafter:
    """Find the family of a checkpoint and read it. Raises UserError for unknown families, listing the known ones."""
    drafter = find_family(checkpoint).read(checkpoint, target)
    drafter.notes += contradictions(checkpoint.config)
    if doubled := sorted({i for i in drafter.taps if drafter.taps.count(i) > 1}):
        drafter.warnings.append(
            f"{checkpoint.config.path}: the input of layer {join_words(doubled)} is tapped more than once, which no "
            "published drafter does: are the ids right?"
        )
    return drafter


def find_family(checkpoint: Checkpoint) -> Family:
    """The family whose content this is. Raises UserError if there is none or the architecture's name contradicts it."""
    known = "Known: " + "; ".join(KNOWN) + "."
    refuse_if_known(checkpoint, known)
    config = checkpoint.config
    architecture = next(iter(config.strings("architectures")), None)
    family = next((f for f in FAMILIES if f.recognises(checkpoint)), None)
    family = family or next((f for f in FAMILIES if architecture in f.by_name), None)
    if family is None or (architecture is not None and architecture not in family.architectures):
        like = f" (its tensors look like {family.name})" if family else ""
        found = architecture or "missing"
        raise UserError(f"{config.where('architectures')} is {found}{like}; no drafter that is read here. {known}")
    return family
