"""What a module of this package offers for each family it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dflash_convert.checkpoint import Checkpoint
from dflash_convert.drafter import Drafter
from dflash_convert.target import Target


@dataclass(frozen=True)
class Family:
    """One checkpoint family.

    name: for messages ("DFlash"); known: how `--help` lists it
    architectures: the names in `architectures` that it goes by; other names are a contradiction
    recognises: whether the content (keys and tensors) is this family's; never by architecture alone
    read: checkpoint and target to the description
    by_name: a checkpoint that no family recognises is this one's if its architecture is listed, so that the reader
        can name the tensors that are missing
    """

    name: str
    known: str
    architectures: frozenset[str]
    recognises: Callable[[Checkpoint], bool]
    read: Callable[[Checkpoint, Target], Drafter]
    by_name: frozenset[str] = frozenset()


def tensor_names(checkpoint: Checkpoint) -> set[str]:
    """Names without the `model.` that some savers put in front."""
    return {n.removeprefix("model.") for n in checkpoint.tensors}
