"""Steps that readers of several families share."""

from __future__ import annotations

from collections.abc import Mapping

from dflash_tools.errors import UserError

from dflash_convert.check import check_float_type
from dflash_convert.checkpoint import Checkpoint
from dflash_convert.drafter import OutTensor
from dflash_convert.shape import LAYER_NAMES
from dflash_convert.tensors import LazyTensor


def without_model_prefix(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """The tensors by names without a leading `model.`, which some savers add, and without tables made at run time."""
    found: dict[str, LazyTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        short = name.removeprefix("model.")
        if short.endswith(".rotary_emb.inv_freq"):
            continue
        if short in found:
            raise UserError(f"{tensor.file}: {short} stands twice, with and without the prefix model.")
        found[short] = tensor
    return found


def layer_tensors(
    tensors: Mapping[str, LazyTensor], layer: int, names: Mapping[str, str] = LAYER_NAMES
) -> list[OutTensor]:
    """The tensors of `layers.<layer>.` that are there, under their GGUF names."""
    found = []
    for name, gguf_name in names.items():
        tensor = tensors.get(f"layers.{layer}.{name}")
        if tensor is not None:
            found.append(weight(tensor, f"blk.{layer}.{gguf_name}"))
    return found


def weight(tensor: LazyTensor, gguf_name: str, row_order: tuple[int, ...] | None = None) -> OutTensor:
    """A floating-point tensor of the checkpoint under its GGUF name."""
    check_float_type(tensor)
    return OutTensor(gguf_name, tensor, row_order)


def refuse_keys(checkpoint: Checkpoint, reasons: Mapping[str, str]) -> None:
    """Refuse a config in which one of the keys is set (to anything but null, false and 0)."""
    for key, reason in reasons.items():
        if checkpoint.config.values.get(key):
            raise UserError(f"{checkpoint.config.where(key)} is set: {reason}")
