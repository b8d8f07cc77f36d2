"""The size of a drafter's transformer, read from its config, and the tensors a layer of that size has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dflash_tools.errors import UserError

from dflash_convert.jsonfile import Config

# What transformers fills in for keys that a config of this model type leaves out.
MODEL_TYPE_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen3": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "max_window_layers": 28,
        "sliding_window": 4096,
    },
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
    },
}
MAX_LAYERS = 512
MAX_DIM = 1 << 20


@dataclass(frozen=True)
class Shape:
    """Sizes of the drafter's transformer. `head_dim_stated`: by the config or by its model type."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_stated: bool
    rms_eps: float
    vocab: int
    context: int | None


def with_model_defaults(config: Config) -> Config:
    """`config` completed as transformers would complete it for its model_type (qwen3 and llama)."""
    defaults = MODEL_TYPE_DEFAULTS.get(config.string("model_type"), {})
    return config.with_defaults({k: v for k, v in defaults.items() if k not in config.values})


def default_theta(config: Config) -> float | None:
    """The rope base of a config that states none: transformers' default, where the model type is known."""
    return 1e4 if config.string("model_type") in MODEL_TYPE_DEFAULTS else None


def read_shape(config: Config) -> Shape:
    """Sizes from a config that went through `with_model_defaults`. Raises UserError for impossible ones."""
    heads = config.integer("num_attention_heads", least=1, most=MAX_DIM)
    hidden = config.integer("hidden_size", least=1, most=MAX_DIM)
    kv_heads = config.optional_integer("num_key_value_heads", least=1, most=MAX_DIM) or heads
    if heads % kv_heads:
        raise UserError(
            f"{config.where('num_key_value_heads')} is {kv_heads}, which does not divide num_attention_heads ({heads})"
        )
    head_dim = config.optional_integer("head_dim", least=1, most=MAX_DIM)
    stated = head_dim is not None or config.string("model_type") == "llama"
    if head_dim is None:
        if hidden % heads:
            raise UserError(f"{config.where('head_dim')} is missing, and {heads} heads do not divide {hidden}")
        head_dim = hidden // heads
    if head_dim % 2:
        raise UserError(f"{config.where('head_dim')} is {head_dim}; rotary embedding needs an even number")
    return Shape(
        layers=config.integer("num_hidden_layers", least=1, most=MAX_LAYERS),
        hidden=hidden,
        feed_forward=config.integer("intermediate_size", least=1, most=MAX_DIM),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        head_dim_stated=stated,
        rms_eps=config.number("rms_norm_eps", positive=True),
        vocab=config.integer("vocab_size", least=1, most=1 << 24),
        context=config.optional_integer("max_position_embeddings", least=1),
    )


def layer_shapes(shape: Shape, attention_input: int) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the tensors that any layer has, by their names below `layers.<i>.`: attention and gated MLP.

    `attention_input` is the width of what q, k and v read.
    """
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "input_layernorm.weight": (shape.hidden,),
        "self_attn.q_proj.weight": (q, attention_input),
        "self_attn.k_proj.weight": (kv, attention_input),
        "self_attn.v_proj.weight": (kv, attention_input),
        "self_attn.o_proj.weight": (shape.hidden, q),
        "post_attention_layernorm.weight": (shape.hidden,),
        "mlp.gate_proj.weight": (shape.feed_forward, shape.hidden),
        "mlp.up_proj.weight": (shape.feed_forward, shape.hidden),
        "mlp.down_proj.weight": (shape.hidden, shape.feed_forward),
    }


# Names below `layers.<i>.` -> names below `blk.<i>.`
LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
