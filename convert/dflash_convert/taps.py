"""Which layers of the target a drafter reads, where the user knows better than the file.

Files name the layers whose input is read or those whose output is read, one less, and the same key has been read in
both ways. `--taps` settles it: `inputs`, `outputs`, or the layers themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dflash_tools.errors import UserError

from dflash_convert.drafter import Drafter

MEANINGS = ("inputs", "outputs")
_LONGEST = 4096  # characters


def parse_taps(text: str) -> str | tuple[int, ...]:
    """The value of `--taps`: one of MEANINGS, or the layers whose input is read ("2,18,33").

    Raises UserError for anything else.
    """
    if text in MEANINGS:
        return text
    if not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", text.replace(" ", "")) or len(text) > _LONGEST:
        raise UserError(
            f"--taps {text[:80]!r}: expected inputs or outputs (how the ids of the drafter's file are meant), or the "
            "layers whose input is read, such as 2,18,33"
        )
    taps = tuple(int(i) for i in text.split(","))
    if len(set(taps)) < len(taps):
        raise UserError(f"--taps {text}: names a layer twice")
    return taps


def override_taps(drafter: Drafter, wanted: str | tuple[int, ...]) -> str | None:
    """Set `drafter.taps` as the user says; returns what that changed, as a clause, None for nothing.

    Raises UserError if the file gives nothing to reinterpret or the number of layers is another.
    """
    if isinstance(wanted, str):
        if not drafter.tap_ids:
            raise UserError(f"--taps {wanted}: the drafter's file names no layers; give them, such as --taps 2,18,33")
        shift = MEANINGS.index(wanted)
        taps: Sequence[int] = [i + shift for i in drafter.tap_ids]
    else:
        taps = wanted
    if len(taps) != len(drafter.taps):
        raise UserError(
            f"--taps names {len(taps)} layers; fc of this drafter reads {len(drafter.taps)}, "
            f"by its file the inputs of {list(drafter.taps)}"
        )
    before, drafter.taps = drafter.taps, tuple(taps)
    return f"--taps: the inputs of layers {list(taps)} instead of {list(before)}" if drafter.taps != before else None
