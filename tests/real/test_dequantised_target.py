"""A quantised Llama GGUF goes back to the checkpoint it was made from."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
from dflash_tools.errors import UserError
from dflash_tools.real.target import dequantised_llama
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FF, VOCAB = 64, 4, 2, 16, 96, 40
SHAPES = {
    "model.embed_tokens": (VOCAB, HIDDEN),
    "model.norm": (HIDDEN,),
    "model.layers.0.input_layernorm": (HIDDEN,),
    "model.layers.0.self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "model.layers.0.self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "model.layers.0.self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "model.layers.0.self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "model.layers.0.post_attention_layernorm": (HIDDEN,),
    "model.layers.0.mlp.gate_proj": (FF, HIDDEN),
    "model.layers.0.mlp.up_proj": (FF, HIDDEN),
    "model.layers.0.mlp.down_proj": (HIDDEN, FF),
}
GGUF_NAMES = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)


def rope_order(weights: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face's rows in llama.cpp's order, row by row: HF pairs row i with i + d/2, llama.cpp 2i with 2i + 1."""
    dim = len(weights) // heads
    rows = [head * dim + half * dim // 2 + i for head in range(heads) for i in range(dim // 2) for half in (0, 1)]
    return weights[rows]


@pytest.fixture
def checkpoint() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    # Halves are exact in f16 and in Q8_0 blocks that hold one value only, so nothing is lost on the way.
    return {f"{name}.weight": random.integers(-3, 4, shape) / 2 for name, shape in SHAPES.items()}


@pytest.fixture
def write_gguf(checkpoint, tmp_path):
    def write(architecture: str = "llama", extra: str | None = None):
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_embedding_length(HIDDEN)
        writer.add_feed_forward_length(FF)
        writer.add_block_count(1)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_context_length(128)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10000.0)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"t{i}" for i in range(VOCAB)])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        for name, weights in checkpoint.items():
            heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else 0
            stored = (rope_order(weights, heads) if heads else weights).astype(np.float32)
            writer.add_tensor(GGUF_NAMES.get_name(name, (".weight",)), stored)
        if extra:
            writer.add_tensor(extra, np.zeros(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture(autouse=True)
def tokenizer(monkeypatch):
    """The tokenizer is transformers' work; here it only has to be saved."""
    import transformers

    class Saved:
        def save_pretrained(self, folder):
            Tokenizer(models.BPE()).save(str(folder / "tokenizer.json"))

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_args, **_kwargs: Saved())


def test_weights_come_back_under_their_names_and_in_their_order(checkpoint, write_gguf, tmp_path):
    out = dequantised_llama(write_gguf(), tmp_path / "hf")
    found = load_file(out / "model.safetensors")
    assert found.keys() == checkpoint.keys()
    for name, weights in checkpoint.items():
        np.testing.assert_array_equal(found[name].astype(np.float64), weights, err_msg=name)


def test_the_config_describes_the_model(write_gguf, tmp_path):
    config = json.loads((dequantised_llama(write_gguf(), tmp_path / "hf") / "config.json").read_text())
    assert (config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]) == (64, 4, 2)
    assert (config["num_hidden_layers"], config["vocab_size"], config["tie_word_embeddings"]) == (1, VOCAB, True)
    assert config["rope_theta"] == 10000.0


def test_another_architecture_is_refused(write_gguf, tmp_path):
    with pytest.raises(UserError, match=r"general\.architecture is qwen3"):
        dequantised_llama(write_gguf("qwen3"), tmp_path / "hf")


def test_an_unknown_tensor_is_named_and_nothing_is_left(write_gguf, tmp_path):
    with pytest.raises(UserError, match=r"blk\.0\.attn_sinks\.weight has no place"):
        dequantised_llama(write_gguf(extra="blk.0.attn_sinks.weight"), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
