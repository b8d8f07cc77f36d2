"""DSpark over Gemma 4's full-attention layers (DeepSpec, ModelOpt: `Gemma4DSparkModel`).

What differs from the Qwen3-like backbone: values are the keys' projection under a norm without weights, the softmax is
not scaled, embeddings are multiplied by sqrt(hidden size), each sublayer's output is normed too, every layer's output
has a scalar, and only a share of a head's dimensions is rotated, those of the highest frequencies of the whole head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from dflash_tools.errors import UserError

from dflash_convert.check import check_tensors
from dflash_convert.checkpoint import Checkpoint
from dflash_convert.drafter import Drafter, OutTensor
from dflash_convert.families.backbone import Places
from dflash_convert.families.block_attention import FULL, layer_types, zlab_attention
from dflash_convert.families.common import layer_tensors, refuse_keys, weight, without_model_prefix
from dflash_convert.families.dflash import output_taps
from dflash_convert.families.dspark import SECTIONS, add_heads, transform_notes
from dflash_convert.families.dspark_heads import Heads, read_heads
from dflash_convert.families.family import Family, tensor_names
from dflash_convert.gguf_file import Metadata, f32, text, u32
from dflash_convert.jsonfile import Config
from dflash_convert.rope import Rope
from dflash_convert.shape import LAYER_NAMES, MAX_DIM, MAX_LAYERS, Shape, layer_shapes
from dflash_convert.shared_weights import choose_embedding_and_head
from dflash_convert.target import Target
from dflash_convert.tensors import LazyTensor

ARCHITECTURES = frozenset({"Gemma4DSparkModel"})
_ACTIVATION = "gelu_pytorch_tanh"
_MARK = "layers.0.pre_feedforward_layernorm.weight"
_NAMES = {
    **{hf: name for hf, name in LAYER_NAMES.items() if "v_proj" not in hf},
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "layer_scalar": "layer_output_scale.weight",
}
# what transformers fills in for rope_parameters
_ROPE = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}
_NOT_ROTATED = 1e30  # what the frequency is divided by


def read(checkpoint: Checkpoint, target: Target) -> Drafter:
    """Read a Gemma 4 DSpark checkpoint. Raises UserError where it is incomplete or llama.cpp cannot run it."""
    config = checkpoint.config
    own = Places((*(config.section(s) for s in SECTIONS), config))
    refuse_keys(
        checkpoint,
        {
            "quantization_config": "quantised checkpoints are not read; take the original one",
            "attention_bias": "llama.cpp's Gemma 4 drafters have no biases",
            "enable_moe_block": "llama.cpp's Gemma 4 drafters have no experts",
            "hidden_size_per_layer_input": "llama.cpp's Gemma 4 drafters have no embeddings per layer",
        },
    )
    shape = _shape(config)
    tensors = {_short(name): tensor for name, tensor in without_model_prefix(checkpoint).items()}
    heads = read_heads(
        own, tensors, anchor_first=True, default_rank=0, hidden=shape.hidden, vocab=shape.vocab, draft_vocab=shape.vocab
    )
    warnings: list[str] = []
    attention = zlab_attention(config, config.section(SECTIONS[0]), shape.layers, warnings)
    taps = output_taps(own)
    _check(checkpoint, config, tensors, shape, heads, len(taps))
    rope = _rope(config, shape.head_dim)
    drafter = Drafter(
        family="DSpark (Gemma 4)",
        arch="dflash",
        switch="--dflash",
        block_count=shape.layers,
        hidden_size=shape.hidden,
        target_hidden_size=shape.hidden,
        feed_forward_size=shape.feed_forward,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        head_dim_stated=True,
        rms_eps=shape.rms_eps,
        vocab_size=shape.vocab,
        context_length=shape.context,
        rope=rope,
        taps=taps,
        tensors=_tensors(tensors, shape.layers, rope, target),
        mask_token_id=own.mask_token(),
        block_size=own.of("block_size").integer("block_size", least=2, most=1024),
        notes=attention.notes(),
        warnings=warnings,
    )
    drafter.extra = {
        "block_size": u32(drafter.block_size or 0),
        **attention.keys(),
        **_keys(shape),
        **_transforms(own),
    }
    add_heads(drafter, heads, tensors)
    drafter.notes += transform_notes(drafter)
    drafter.tensors += _embedding_and_head(checkpoint, drafter, tensors, target)
    return drafter


def _shape(config: Config) -> Shape:
    """Sizes of the full-attention layers, which Gemma 4 gives names of their own."""
    layers = config.integer("num_hidden_layers", least=1, most=MAX_LAYERS)
    if not config.flag("attention_k_eq_v", False):
        raise UserError(
            f"{config.where('attention_k_eq_v')} is not true: llama.cpp norms the values of a drafter only where they "
            "are the keys' projection"
        )
    if set(layer_types(config, layers, derive=False)) != {FULL}:
        raise UserError(f"{config.where('layer_types')}: llama.cpp's Gemma 4 drafters have full attention only")
    if config.string("hidden_activation", _ACTIVATION) != _ACTIVATION:
        raise UserError(f"{config.where('hidden_activation')} is not {_ACTIVATION}, which Gemma 4 has")
    heads = config.integer("num_attention_heads", least=1, most=MAX_DIM)
    kv_heads = config.integer("num_global_key_value_heads", least=1, most=MAX_DIM)
    head_dim = config.integer("global_head_dim", least=2, most=MAX_DIM)
    if heads % kv_heads:
        raise UserError(f"{config.where('num_global_key_value_heads')} is {kv_heads}, which does not divide {heads}")
    if head_dim % 2:
        raise UserError(f"{config.where('global_head_dim')} is {head_dim}; rotary embedding needs an even number")
    return Shape(
        layers=layers,
        hidden=config.integer("hidden_size", least=1, most=MAX_DIM),
        feed_forward=config.integer("intermediate_size", least=1, most=MAX_DIM),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        head_dim_stated=True,
        rms_eps=config.number("rms_norm_eps", positive=True) if config.has("rms_norm_eps") else 1e-6,
        vocab=config.integer("vocab_size", least=1, most=1 << 24),
        context=config.optional_integer("max_position_embeddings", least=1),
    )


def _short(name: str) -> str:
    return name.replace("confidence_proj.", "confidence_head.proj.", 1)


def _check(
    checkpoint: Checkpoint,
    config: Config,
    tensors: Mapping[str, LazyTensor],
    shape: Shape,
    heads: Heads,
    n_taps: int,
) -> None:
    hidden, table = shape.hidden, (shape.vocab, shape.hidden)
    required: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, n_taps * hidden),
        "hidden_norm.weight": (hidden,),
        "norm.weight": (hidden,),
        **heads.required(),
    }
    layer: dict[str, tuple[int, ...]] = {n: s for n, s in layer_shapes(shape, hidden).items() if "v_proj" not in n}
    layer |= {f"self_attn.{n}_norm.weight": (shape.head_dim,) for n in "qk"}
    layer |= {f"{n}_feedforward_layernorm.weight": (hidden,) for n in ("pre", "post")}
    layer["layer_scalar"] = (1,)
    required |= {f"layers.{i}.{name}": s for i in range(shape.layers) for name, s in layer.items()}
    optional = {"embed_tokens.weight": table, "lm_head.weight": table, **heads.optional()}
    check_tensors(checkpoint.directory, tensors, required, optional)
    draft_vocab = config.optional_integer("draft_vocab_size", least=1) or shape.vocab
    if draft_vocab != shape.vocab:
        raise UserError(
            f"{config.where('draft_vocab_size')} is {draft_vocab}: Gemma 4 drafters with a reduced vocabulary "
            f"({shape.vocab} tokens) are not known"
        )


def _rope(config: Config, head_dim: int) -> Rope:
    """Base, and the frequencies' divisors of "proportional" rope, whose exponents run over the whole head."""
    stated = config.section("rope_parameters")
    params = stated.section("full_attention") if stated.has("full_attention") else stated
    if not params.values:
        params = Config(config.path, _ROPE, "rope_parameters.")
    kind = params.string("rope_type", "default")
    if kind not in ("default", "proportional"):
        raise UserError(f"{params.where('rope_type')} is {kind!r}; Gemma 4 drafters have default or proportional rope")
    rope = Rope(theta=params.number("rope_theta", positive=True))
    if kind == "default":
        return rope
    share = params.optional_number("partial_rotary_factor", positive=True) or 0.25
    rotated = int(head_dim * share / 2)
    if share > 1 or 2 * rotated != head_dim * share:
        raise UserError(
            f"{params.where('partial_rotary_factor')} is {share}; an even number of the {head_dim} dimensions of a "
            "head must be rotated"
        )
    factor = params.optional_number("factor", positive=True) or 1.0
    return replace(rope, freq_factors=(factor,) * rotated + (_NOT_ROTATED,) * (head_dim // 2 - rotated))


def _keys(shape: Shape) -> Metadata:
    return {
        "rope.dimension_count": u32(shape.head_dim),
        "embedding_scale": f32(shape.hidden**0.5),
        "attention.scale": f32(1.0),
        "hidden_activation": text(_ACTIVATION),
    }


def _transforms(own: Places) -> Metadata:
    cap = own.of("final_logit_softcapping").optional_number("final_logit_softcapping")
    return {"final_logit_softcapping": f32(cap)} if cap else {}


def _tensors(tensors: Mapping[str, LazyTensor], layers: int, rope: Rope, target: Target) -> list[OutTensor]:
    found = []
    if rope.freq_factors is not None:
        if target.mrope:
            raise UserError(
                f"{target.path}: the target has several rope axes (M-RoPE) and the drafter proportional rope; "
                "llama.cpp ignores the proportion in that case"
            )
        found.append(OutTensor("rope_freqs.weight", np.array(rope.freq_factors, dtype=np.float32)))
    for name, gguf_name in (("fc", "fc"), ("hidden_norm", "enc.output_norm"), ("norm", "output_norm")):
        found.append(weight(tensors[f"{name}.weight"], f"{gguf_name}.weight"))
    for i in range(layers):
        found += layer_tensors(tensors, i, _NAMES)
    return found


def _embedding_and_head(
    checkpoint: Checkpoint, drafter: Drafter, tensors: Mapping[str, LazyTensor], target: Target
) -> list[OutTensor]:
    """As everywhere; but a drafter whose head is its embeddings is written with one table, which llama.cpp ties."""
    embedding, tied = tensors.get("embed_tokens.weight"), checkpoint.config.flag("tie_word_embeddings", False)
    if embedding is None or "lm_head.weight" in tensors or not tied:
        return choose_embedding_and_head(checkpoint, drafter, tensors, target)
    both = choose_embedding_and_head(checkpoint, drafter, {**tensors, "lm_head.weight": embedding}, target)
    names = [t.name for t in both]
    return both[:1] if names == ["token_embd.weight", "output.weight"] else both


def _recognises(checkpoint: Checkpoint) -> bool:
    names = tensor_names(checkpoint)
    return _MARK in names and "hidden_norm.weight" in names


FAMILY = Family(
    name="DSpark of Gemma 4",
    known="DSpark over Gemma 4's layers (Gemma4DSparkModel)",
    architectures=ARCHITECTURES,
    recognises=_recognises,
    read=read,
    by_name=ARCHITECTURES,
)
