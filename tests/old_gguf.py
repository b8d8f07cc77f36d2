"""Drafter GGUFs as older converters write them, made from small checkpoints: own keys, own tensor names, same weights.

Written after what those files hold (names, keys and their types), not with those converters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BUUN = {"fc": "dflash_fc", "hidden_norm": "dflash_hidden_norm", "post_attention_layernorm": "post_attention_norm"}
LUCEBOX = {
    "fc": "dflash.fc",
    "hidden_norm": "dflash.hidden_norm",
    "post_attention_layernorm": "ffn_norm",
    "markov_head.markov_w1.weight": "dflash.dspark.markov.w1",
    "markov_head.markov_w2.weight": "dflash.dspark.markov.w2",
    "confidence_head.proj.weight": "dflash.dspark.confidence.weight",
    "confidence_head.proj.bias": "dflash.dspark.confidence.bias",
}
MIGRATED = {"fc": "fc", "hidden_norm": "enc.output_norm", "post_attention_layernorm": "ffn_norm"}


def write_old(
    path: Path,
    arch: str,
    config: dict[str, Any],
    tensors: Mapping[str, torch.Tensor],
    *,
    names: dict[str, str],
    keys: dict[str, Any],
    drop: tuple[str, ...] = (),
    matrices: T = T.BF16,
    dtype: torch.dtype = torch.bfloat16,
    tokenizer: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    """A drafter of `config` (z-lab's) under an engine's `names`, with its further `keys` (below the architecture).

    `dtype` is that of the checkpoint; `drop` leaves out keys. Python floats are written as f32, lists of bool as
    bool, other integers as u32 or i32 lists.
    """
    writer = gguf.GGUFWriter(path, arch)
    writer.add_string("general.name", "An Old Drafter")
    shape = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config["rope_theta"]),
    }
    for key, value in {**shape, **keys}.items():
        if key not in drop:
            _add(writer, f"{arch}.{key}" if not key.startswith("general.") else key, value)
    tokenizer(writer)
    for name, tensor in tensors.items():
        new = old_name(name, names)
        data = tensor.to(dtype).float().numpy() if tensor.is_floating_point() else tensor.numpy()
        kind = T.F32 if data.ndim == 1 else matrices
        if kind is T.F32:
            writer.add_tensor(new, data)
        else:
            writer.add_tensor(new, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def old_name(name: str, names: dict[str, str]) -> str:
    """The name of a z-lab tensor in a file of that engine."""
    if name in names:
        return names[name]
    parts = name.removesuffix(".weight").split(".", 2)
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{ {**_LAYER, **names}[parts[2]] }.weight"
    top = {"norm": "output_norm", "embed_tokens": "token_embd", "lm_head": "output", **names}
    return f"{top[name.removesuffix('.weight')]}.weight" if name.endswith(".weight") else name


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def tokenizer_of(file: Path) -> Callable[[gguf.GGUFWriter], None]:
    """Adds the tokenizer that `file` has (but for its mask token) to a writer."""

    def add(writer: gguf.GGUFWriter) -> None:
        for f in gguf.GGUFReader(file).fields.values():
            if f.name.startswith("tokenizer.") and f.name != "tokenizer.ggml.mask_token_id":
                writer.add_key_value(f.name, f.contents(), f.types[0], f.types[-1] if len(f.types) > 1 else None)

    return add


def rewrite(source: Path, path: Path, *, drop: tuple[str, ...] = (), keys: dict[str, Any] | None = None) -> Path:
    """A copy of a GGUF file without the keys and tensors of `drop` and with others added or replaced."""
    reader = gguf.GGUFReader(source)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, arch)
    gone = {*drop, *(keys or {}), "general.architecture"}
    for f in reader.fields.values():
        if f.name[:5] != "GGUF." and f.name not in gone:
            writer.add_key_value(f.name, f.contents(), f.types[0], f.types[-1] if len(f.types) > 1 else None)
    for key, value in (keys or {}).items():
        _add(writer, key, value)
    for t in reader.tensors:
        if t.name not in drop:
            writer.add_tensor(t.name, np.ascontiguousarray(t.data), raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
