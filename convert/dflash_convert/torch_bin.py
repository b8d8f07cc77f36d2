"""Read `pytorch_model.bin`: PyTorch's pickle format, with `weights_only` so that no code in it runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from dflash_tools.errors import UserError

from dflash_convert.tensors import LazyTensor

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def read_torch_bin(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a state dict saved by torch. Needs torch.

    Raises UserError if torch is not installed, or the file is anything but a mapping of names to dense tensors.
    """
    state = load_weights_only(path)
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}; a mapping of names to tensors is expected")
    return {name: lazy_tensor(path, name, value) for name, value in state.items()}


def load_weights_only(path: Path) -> Any:
    """What torch saved to `path`, as long as it is data. Raises UserError if it is not, or torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            f"{path}: reading PyTorch's {path.suffix} format needs torch (`pip install torch`); safetensors files "
            "do not"
        )
    import torch

    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as e:
            if "mmap" not in str(e):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # the format before PyTorch 1.6
    except Exception as e:  # torch raises many types for a damaged file
        reason = next(iter(str(e).splitlines()), "") or type(e).__name__
        raise UserError(f"{path}: torch cannot read it (weights_only): {reason[:300]}") from e


def lazy_tensor(path: Path, name: Any, value: Any) -> LazyTensor:
    """A tensor that torch read from `path`. Raises UserError if `value` is none, or of a type not read here."""
    import torch

    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise UserError(f"{path}: entry {str(name)[:80]!r} is a {type(value).__name__}; a tensor is expected")
    dtype = _NAMES.get(str(value.dtype).removeprefix("torch."))
    if dtype is None or value.layout is not torch.strided or value.device.type != "cpu":
        raise UserError(f"{path}: {name}: {value.dtype} ({value.layout}) is no type this converter reads")

    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        # flattening would make memory of it
        raise UserError(f"{path}: {name}: {tuple(value.shape)} shows the same numbers several times; that is not read")
    flat = value.detach().reshape(-1)  # parameters are saved too

    def read_flat(start: int, stop: int) -> np.ndarray:
        part = flat[start:stop]
        if dtype == "BF16":
            return part.view(torch.int16).numpy().view(np.uint16)
        return part.to(torch.uint8).numpy() if dtype == "BOOL" else part.numpy()

    return LazyTensor(name, dtype, tuple(value.shape), path, read_flat)
