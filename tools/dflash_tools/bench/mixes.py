"""Which type each tensor gets in the quantisations people use: what llama-quantize does, for the tensors of our shapes.

From `llama_tensor_get_type_impl` in llama.cpp's src/llama-quant.cpp: the rule for a tensor's role comes first, then the
fallback for rows that are no whole number of blocks. `tests/bench` compares with llama-quantize itself.
"""

from __future__ import annotations

from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T

from dflash_tools.bench.layout import Tensor
from dflash_tools.errors import UserError

_DEFAULT = {"q4_k_m": T.Q4_K, "q5_k_m": T.Q5_K, "q8_0": T.Q8_0, "bf16": T.BF16, "mxfp4": T.Q8_0}
_FALLBACK = {T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0}
MIXES = tuple(_DEFAULT)


def tensor_type(tensor: Tensor, mix: str, layers: int, *, tied: bool = False) -> T:
    """The type of one tensor of a model with so many layers. Raises UserError for a mix that is not in MIXES."""
    if mix not in _DEFAULT:
        raise UserError(f"no mix is called {mix!r}; there are {', '.join(MIXES)}")
    if not tensor.quantised:
        return T.F32
    kind = _wanted(tensor, mix, layers, tied)
    if tensor.shape[0] % GGML_QUANT_SIZES[kind][0]:
        kind = _FALLBACK.get(kind, kind)
    return kind if tensor.shape[0] % GGML_QUANT_SIZES[kind][0] == 0 else T.F16


def _wanted(tensor: Tensor, mix: str, layers: int, tied: bool) -> T:
    default = _DEFAULT[mix]
    if mix == "mxfp4":
        return T.MXFP4 if len(tensor.shape) == 3 else T.Q8_0
    if mix in ("q8_0", "bf16"):
        return default
    if tensor.name == "output.weight" or (tied and tensor.name == "token_embd.weight"):
        return T.Q6_K if tensor.shape[0] % 256 == 0 else T.Q8_0
    if tensor.part in ("attn_v", "attn_qkv"):
        kind = T.Q6_K if _more_bits(tensor.layer, layers) else default
        return T.Q8_0 if tensor.experts == 8 else kind
    if tensor.part == "attn_k" and tensor.experts == 8:
        return T.Q8_0
    if tensor.part == "attn_output" and tensor.experts == 8 and mix == "q4_k_m":
        return T.Q5_K
    if tensor.part.startswith("ffn_down") and _more_bits(tensor.layer, layers):
        return T.Q6_K
    return default


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth, and every third layer between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
