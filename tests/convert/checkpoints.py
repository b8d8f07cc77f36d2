"""Small random checkpoints in the published layouts: targets (config + tokenizer, weights on request) and drafters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from dflash_convert.pretokenizer import QWEN2
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB = 320
LAYERS = 8
HIDDEN = 64
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>")
MASK = VOCAB - 1
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MROPE = {**ROPE, "mrope_section": [4, 2, 2], "mrope_interleaved": True, "partial_rotary_factor": 0.5}

Tensors = dict[str, torch.Tensor]


def make_tokenizer(directory: Path, regex: str | None = QWEN2, vocab: int = VOCAB) -> None:
    """A byte-level BPE tokenizer that no converter knows by hash; `regex` None: GPT-2's own splitting."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    split = [] if regex is None else [pre_tokenizers.Split(Regex(regex), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab - len(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["def the_return_of(self, value): return self.value + 1000\n"] * 9, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "add_prefix_space": False,
            "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}",
        },
    )


def make_target(directory: Path, architecture: str = "Qwen3ForCausalLM", **overrides: Any) -> Path:
    """A target without weights."""
    make_tokenizer(directory)
    model_type = {"Qwen3ForCausalLM": "qwen3", "LlamaForCausalLM": "llama"}.get(architecture, "qwen3_5_text")
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCAB,
        "rope_parameters": ROPE,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        **overrides,
    }
    write_json(directory / "config.json", config)
    return directory


def dflash_config(**overrides: Any) -> dict[str, Any]:
    """A z-lab config; None takes a key away."""
    config = {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "block_size": 8,
        "dflash_config": {"mask_token_id": MASK, "target_layer_ids": [0, 2, 5]},
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_hidden_layers": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        **overrides,
    }
    return {k: v for k, v in config.items() if v is not None or k == "rope_scaling"}


def eagle3_config(**overrides: Any) -> dict[str, Any]:
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "draft_vocab_size": 128,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        **overrides,
    }
    return {k: v for k, v in config.items() if v is not None}


def layer(config: dict[str, Any], prefix: str, width: int, gen: torch.Generator) -> Tensors:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    hd = config.get("head_dim", hidden // heads)
    q, kv, ff = heads * hd, config.get("num_key_value_heads", heads) * hd, config["intermediate_size"]
    shapes = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (q, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (ff, hidden),
        "mlp.up_proj": (ff, hidden),
        "mlp.down_proj": (hidden, ff),
    }
    return {f"{prefix}.{n}.weight": torch.randn(s, generator=gen) for n, s in shapes.items()}


def dflash_tensors(config: dict[str, Any], seed: int = 0, own: tuple[str, ...] = ()) -> Tensors:
    """All tensors of a z-lab drafter; `own` adds `embed_tokens` and `lm_head`."""
    gen = torch.Generator().manual_seed(seed)
    hidden = config["hidden_size"]
    hd = config.get("head_dim", hidden // config["num_attention_heads"])
    ids = config.get("dflash_config", {}).get("target_layer_ids") or config.get("target_layer_ids", [])
    found = {
        "fc.weight": torch.randn(hidden, len(ids) * hidden, generator=gen),
        "hidden_norm.weight": torch.randn(hidden, generator=gen),
        "norm.weight": torch.randn(hidden, generator=gen),
    }
    for i in range(config["num_hidden_layers"]):
        found |= layer(config, f"layers.{i}", hidden, gen)
        found |= {f"layers.{i}.self_attn.{n}_norm.weight": torch.randn(hd, generator=gen) for n in "qk"}
    found |= {f"{name}.weight": torch.randn(config["vocab_size"], hidden, generator=gen) for name in own}
    return found


def eagle3_tensors(
    config: dict[str, Any], seed: int = 0, layer_name: str = "midlayer", own: tuple[str, ...] = ("embed_tokens",)
) -> Tensors:
    gen = torch.Generator().manual_seed(seed)
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    draft = config.get("draft_vocab_size", vocab)
    width = 3 * config.get("target_hidden_size", HIDDEN)
    found = {
        "fc.weight": torch.randn(hidden, width, generator=gen),
        "norm.weight": torch.randn(hidden, generator=gen),
        "lm_head.weight": torch.randn(draft, hidden, generator=gen),
        **layer(config, layer_name, 2 * hidden, gen),
        f"{layer_name}.hidden_norm.weight": torch.randn(hidden, generator=gen),
    }
    if config.get("norm_before_fc") or config.get("eagle_config", {}).get("norm_before_fc"):
        found["input_norm.weight"] = torch.randn(width, generator=gen)
    if draft < vocab:
        ids = torch.randperm(vocab, generator=gen)[:draft].sort().values
        found["d2t"] = ids - torch.arange(draft)
        found["t2d"] = torch.zeros(vocab, dtype=torch.bool).scatter(0, ids, True)
    found |= {f"{name}.weight": torch.randn(vocab, hidden, generator=gen) for name in own}
    return found


def save(
    directory: Path, config: dict[str, Any], tensors: Tensors, dtype: torch.dtype = torch.bfloat16, shards: int = 1
) -> Path:
    """Write config.json and model.safetensors (or shards with their index)."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config)
    cast = {n: t.to(dtype).contiguous() if t.is_floating_point() else t for n, t in tensors.items()}
    if shards == 1:
        save_file(cast, directory / "model.safetensors")
        return directory
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: t for j, (n, t) in enumerate(sorted(cast.items())) if j % shards == i}
        save_file(part, directory / name)
        weight_map |= dict.fromkeys(part, name)
    write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return directory


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
