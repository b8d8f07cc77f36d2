"""Turn a quantised Llama GGUF back into the Hugging Face directory it came from.

`transformers` can load such a file, but needs torch and accelerate for it and refuses to save what it loaded. Here the
weights are dequantised by gguf-py and stored as f16 (norms as f32), so every later file of the pair holds the very same
numbers.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

from dflash_tools.errors import UserError

_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GLOBAL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def dequantised_llama(gguf: Path, out: Path) -> Path:
    """Write `gguf` (architecture `llama`) as a Hugging Face directory `out`, once; it appears only when it is complete.

    Raises UserError for another architecture or an unknown tensor.
    """
    if out.exists():
        return out
    from safetensors.numpy import save_file
    from transformers import AutoTokenizer

    reader = GGUFReader(gguf)
    config = _config(reader, gguf)
    tensors = {}
    for tensor in reader.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type)
        name = _hf_name(tensor.name, gguf)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            weights = _unpermuted(weights, heads)
        tensors[name] = np.ascontiguousarray(weights, dtype=np.float32 if weights.ndim == 1 else np.float16)

    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(part)
    part.rename(out)
    return out


def _config(reader: GGUFReader, gguf: Path) -> dict[str, Any]:
    def read(key: str) -> Any:
        field = reader.get_field(key)
        if field is None:
            raise UserError(f"{gguf}: has no key {key}")
        return field.contents()

    architecture = read("general.architecture")
    if architecture != "llama":
        raise UserError(
            f"{gguf}: general.architecture is {architecture}; only llama can be taken back to Hugging Face names"
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": len(read("tokenizer.ggml.tokens")),
        "hidden_size": read("llama.embedding_length"),
        "intermediate_size": read("llama.feed_forward_length"),
        "num_hidden_layers": read("llama.block_count"),
        "num_attention_heads": read("llama.attention.head_count"),
        "num_key_value_heads": read("llama.attention.head_count_kv"),
        "max_position_embeddings": read("llama.context_length"),
        "rms_norm_eps": read("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": read("llama.rope.freq_base"),
        "bos_token_id": read("tokenizer.ggml.bos_token_id"),
        "eos_token_id": read("tokenizer.ggml.eos_token_id"),
    }


def _hf_name(name: str, gguf: Path) -> str:
    stem, _, kind = name.rpartition(".")
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if block and block[2] in _BLOCK_NAMES:
        return f"model.layers.{block[1]}.{_BLOCK_NAMES[block[2]]}.{kind}"
    if stem in _GLOBAL_NAMES:
        return f"{_GLOBAL_NAMES[stem]}.{kind}"
    raise UserError(f"{gguf}: tensor {name} has no place in a Llama checkpoint")


def _unpermuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection `[heads * head_dim, n]` from llama.cpp's rope order to Hugging Face's.

    llama.cpp rotates neighbouring rows (2i, 2i + 1), Hugging Face row i with row i + head_dim / 2.
    """
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
