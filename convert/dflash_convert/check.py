"""Does a checkpoint hold exactly the tensors its config calls for, and does it fit its target?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dflash_tools.errors import UserError, join_words

from dflash_convert.drafter import Drafter
from dflash_convert.gguf_file import StoredTensor
from dflash_convert.target import Target
from dflash_convert.tensors import FLOAT_TYPES, LazyTensor

SHOWN = 8


def check_tensors(
    where: Path,
    found: Mapping[str, LazyTensor | StoredTensor],
    required: Mapping[str, tuple[int, ...]],
    optional: Mapping[str, tuple[int, ...]],
    ignored: Iterable[str] = (),
    *,
    of_gguf: bool = False,
) -> None:
    """Refuse missing, extra and odd-shaped tensors, all of them named in one message (the first few of each kind).

    Shapes are as in PyTorch ([rows, columns]). `of_gguf`: the sizes are from the file's own keys, not from a config.
    """
    calls = "the keys call for" if of_gguf else "the config calls for"
    wanted = {**required, **optional}
    missing = [f"{n} {shape_text(s)}" for n, s in required.items() if n not in found]
    extra = [f"{n} {shape_text(t.shape)}" for n, t in found.items() if n not in wanted and n not in set(ignored)]
    odd = [
        f"{n} is {shape_text(found[n].shape)}, {calls} {shape_text(s)}"
        for n, s in wanted.items()
        if n in found and found[n].shape != s
    ]
    problems = [f"{what}: {_some(names)}" for what, names in (("missing", missing), ("odd shape", odd)) if names]
    if extra:
        biases = all(".bias " in n for n in extra)
        problems.append(
            f"not part of this family: {_some(extra)}" + (" (llama.cpp has no biases in drafters)" if biases else "")
        )
    if problems:
        raise UserError(
            "\n  ".join([f"{where}: the tensors do not match the {'keys' if of_gguf else 'config'}.", *problems])
            + "\n  Is the download complete"
            + ("?" if of_gguf else ", and does config.json belong to these weights?")
        )


def check_float_type(tensor: LazyTensor) -> None:
    """Refuse weights that are not plain floating point."""
    if tensor.dtype not in FLOAT_TYPES:
        raise UserError(
            f"{tensor.file}: {tensor.name} is stored as {tensor.dtype}; {join_words(sorted(FLOAT_TYPES), 'or')} is "
            "expected. Quantised checkpoints are not read: take the original one."
        )


def check_target(where: Path, drafter: Drafter, target: Target) -> None:
    """Refuse a drafter that was trained for another target: sizes, vocabulary, tapped layers, mask token."""
    ask = "Is the target the one this drafter was trained for?"
    if target.hidden_size is not None and drafter.target_hidden_size != target.hidden_size:
        raise UserError(
            f"{where}: the drafter reads layers of width {drafter.target_hidden_size}, {target.path} has hidden size "
            f"{target.hidden_size}. {ask}"
        )
    if target.vocab_size is not None and drafter.vocab_size != target.vocab_size:
        raise UserError(
            f"{where}: vocab_size is {drafter.vocab_size}, that of {target.path} is {target.vocab_size}. {ask}"
        )
    if drafter.mask_token_id is not None and not 0 <= drafter.mask_token_id < drafter.vocab_size:
        raise UserError(
            f"{where}: mask_token_id is {drafter.mask_token_id}; the vocabulary has the ids 0 to "
            f"{drafter.vocab_size - 1}"
        )
    n = target.n_layers
    if n is None:
        return
    # the input of layer n is the output of the last one; only some targets can be tapped there
    last = n if target.has_final_tap else n - 1
    wrong = [t for t in drafter.taps if not 0 <= t <= last]
    if wrong:
        raise UserError(
            f"{where}: taps the input of layer {join_words(wrong)} of the target, {target.path} has {n} layers "
            f"(inputs 0 to {last} can be tapped"
            + ("; llama.cpp does not hand out what leaves its last layer" if wrong == [n] else "")
            + f"). {ask}"
        )


def shape_text(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
