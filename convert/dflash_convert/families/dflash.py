"""DFlash, first version, as z-lab publishes it: flat config, `fc` + `hidden_norm` + Qwen3-like layers.

The block [anchor, mask, mask, ...] attends to keys and values made from the target's hidden states; embeddings and head
are the target's. Config keys stand at the top or in `dflash_config`; where both have one, the nested one holds.
"""

from __future__ import annotations

import numpy as np
from dflash_tools.errors import UserError, join_words

from dflash_convert.check import check_tensors
from dflash_convert.checkpoint import Checkpoint
from dflash_convert.drafter import Drafter, OutTensor
from dflash_convert.families.common import layer_tensors, refuse_keys, weight, without_model_prefix
from dflash_convert.families.family import Family, tensor_names
from dflash_convert.gguf_file import Metadata, f32, flag, flag_array, i32_array, text, u32
from dflash_convert.jsonfile import Config
from dflash_convert.rope import Rope, read_rope, sections_for_mrope
from dflash_convert.shape import Shape, default_theta, layer_shapes, read_shape, with_model_defaults
from dflash_convert.shared_weights import choose_embedding_and_head
from dflash_convert.target import Target
from dflash_convert.tensors import LazyTensor

ARCHITECTURES = frozenset({"DFlashDraftModel"})
DEFAULT_BLOCK = 16
_ROTATED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.q_norm.weight", "self_attn.k_norm.weight")
_SINKS = ("self_attn.sinks", "self_attn.attention_sink_bias")
_ACTIVATIONS = {"silu": None, "swish": None, "gelu": "gelu", "gelu_pytorch_tanh": "gelu_pytorch_tanh"}


def read(checkpoint: Checkpoint, target: Target) -> Drafter:
    """Read a z-lab DFlash checkpoint. Raises UserError where it is incomplete or asks for what llama.cpp cannot do."""
    config = with_model_defaults(checkpoint.config)
    nested = config.section("dflash_config")
    refuse_keys(
        checkpoint,
        {
            "attention_bias": "llama.cpp's DFlash has no attention biases",
            "quantization_config": "quantised checkpoints are not read; take the original one",
            "use_gemma_norm": "norms that add 1 to their weight are not supported",
        },
    )
    if (checkpoint.directory / "mask_embedding.pt").exists():
        raise UserError(
            f"{checkpoint.directory / 'mask_embedding.pt'}: a drafter with an embedding of its own for the mask token; "
            "that is not supported yet"
        )
    shape = read_shape(config)
    rope = read_rope(config, shape.head_dim, default_theta(config))
    taps = _taps(config, nested)
    tensors = without_model_prefix(checkpoint)
    _check(checkpoint, config, tensors, shape, len(taps), target)
    drafter = Drafter(
        family="DFlash",
        arch="dflash",
        switch="--dflash",
        block_count=shape.layers,
        hidden_size=shape.hidden,
        target_hidden_size=shape.hidden,
        feed_forward_size=shape.feed_forward,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        head_dim_stated=shape.head_dim_stated,
        rms_eps=shape.rms_eps,
        vocab_size=shape.vocab,
        context_length=shape.context,
        rope=rope,
        taps=taps,
        tensors=_tensors(tensors, shape.layers, _is_interleaved(config), shape.head_dim),
        mask_token_id=_mask_token(config, nested),
        block_size=_either(nested, config, "block_size").optional_integer("block_size", least=2, most=1024)
        or DEFAULT_BLOCK,
        warnings=list(rope.warnings),
    )
    drafter.extra = {
        "block_size": u32(drafter.block_size or DEFAULT_BLOCK),
        **_attention_keys(drafter, config, nested, shape.layers),
        **_scale_keys(config, nested),
        **_rope_keys(drafter, rope, target),
    }
    drafter.tensors += choose_embedding_and_head(checkpoint, drafter, tensors, target)
    return drafter


def _either(nested: Config, config: Config, key: str) -> Config:
    return nested if nested.has(key) else config


def _taps(config: Config, nested: Config) -> tuple[int, ...]:
    """Layers whose input is tapped: z-lab names the layer whose *output* it reads, one less."""
    place = _either(nested, config, "target_layer_ids")
    ids = place.integers("target_layer_ids", least=-1)
    if not ids:
        raise UserError(
            f"{nested.where('target_layer_ids')} is missing: the target layers that the drafter reads cannot be guessed"
        )
    return tuple(i + 1 for i in ids)


def _mask_token(config: Config, nested: Config) -> int:
    place = _either(nested, config, "mask_token_id")
    if not place.has("mask_token_id"):
        raise UserError(
            f"{nested.where('mask_token_id')} is missing, and there is none at the top level either: without the token "
            "that fills the block the drafter cannot run"
        )
    return place.integer("mask_token_id")


def _check(
    checkpoint: Checkpoint,
    config: Config,
    tensors: dict[str, LazyTensor],
    shape: Shape,
    n_taps: int,
    target: Target,
) -> None:
    _check_fc(checkpoint, tensors, shape.hidden, n_taps, target)
    required = {"fc.weight": (shape.hidden, n_taps * shape.hidden), "hidden_norm.weight": (shape.hidden,)}
    required["norm.weight"] = (shape.hidden,)
    optional = {n: (shape.vocab, shape.hidden) for n in ("embed_tokens.weight", "lm_head.weight")}
    sinks = config.section("dflash_config").flag("attention_sink_bias", False)
    for i in range(shape.layers):
        layer = dict(layer_shapes(shape, shape.hidden))
        layer |= {f"self_attn.{n}_norm.weight": (shape.head_dim,) for n in "qk"}
        required |= {f"layers.{i}.{name}": s for name, s in layer.items()}
        names = [n for s in _SINKS for n in (f"layers.{i}.{s}", f"layers.{i}.{s}.weight")]
        optional |= {n: (shape.heads,) for n in names}
        if sinks and not any(n in tensors for n in names):
            raise UserError(f"{checkpoint.directory}: layers.{i}: attention_sink_bias is set but there are no sinks")
    check_tensors(checkpoint.directory, tensors, required, optional)


def _check_fc(
    checkpoint: Checkpoint, tensors: dict[str, LazyTensor], hidden: int, n_taps: int, target: Target
) -> None:
    """The width of `fc` says most about a wrong target or wrong taps, so it has its own message."""
    fc = tensors.get("fc.weight")
    width = target.hidden_size or hidden
    if fc is None or fc.shape == (hidden, n_taps * width):
        if width != hidden:
            raise UserError(
                f"{checkpoint.config.where('hidden_size')} is {hidden}, the target {target.path} has {width}; "
                "llama.cpp runs DFlash drafters only at their target's hidden size. Is the target the one it was "
                "trained for?"
            )
        return
    raise UserError(
        f"{fc.file}: fc.weight is {fc.shape}; {n_taps} tapped layers of a target with hidden size {width} need "
        f"{(hidden, n_taps * width)}. Is {target.path} the target this drafter was trained for?"
    )


def _is_interleaved(config: Config) -> bool:
    return not (config.flag("rope_is_neox_style", True) and config.flag("is_neox_style", True))


def _tensors(tensors: dict[str, LazyTensor], layers: int, interleaved: bool, head_dim: int) -> list[OutTensor]:
    # llama.cpp rotates halves (NeoX): of an interleaved pair order, the even dimensions come first, then the odd
    order = (*range(0, head_dim, 2), *range(1, head_dim, 2)) if interleaved else None
    found = [
        weight(tensors["fc.weight"], "fc.weight"),
        weight(tensors["hidden_norm.weight"], "enc.output_norm.weight"),
        weight(tensors["norm.weight"], "output_norm.weight"),
    ]
    rotated = {tensors[f"layers.{i}.{n}"].name for i in range(layers) for n in _ROTATED}
    for i in range(layers):
        found += [
            OutTensor(t.name, t.source, order) if t.source.name in rotated else t  # type: ignore[union-attr]
            for t in layer_tensors(tensors, i)
        ]
        for name in _SINKS:
            for suffix in ("", ".weight"):
                if (sinks := tensors.get(f"layers.{i}.{name}{suffix}")) is not None:
                    found.append(weight(sinks, f"blk.{i}.attn_sinks.weight"))
    return found


def _attention_keys(drafter: Drafter, config: Config, nested: Config, layers: int) -> Metadata:
    """Sliding windows and causality. llama.cpp has one causal flag for the whole drafter."""
    keys: Metadata = {}
    use_swa, use_window = nested.flag("use_swa", False), config.flag("use_sliding_window", False)
    window = config.optional_integer("sliding_window") if use_window or config.string("model_type") != "qwen3" else None
    types = _layer_types(config, layers, derive=bool(window))
    window = nested.optional_integer("swa_window_size") or window
    sliding = [True] * layers if use_swa else [t == "sliding_attention" for t in types]
    in_use = bool(window) and (use_swa or use_window)
    # a window that no layer has: llama.cpp aborts on it when it makes the cache
    if in_use and any(sliding):
        keys["attention.sliding_window"] = u32(window or 0)
        keys["attention.sliding_window_pattern"] = flag_array(sliding)
    elif any(sliding):
        drafter.warnings.append(
            f"{config.where('layer_types')} has sliding layers but no window is in use; they are written as full ones"
        )
    if config.has("is_causal"):
        keys["attention.causal"] = flag(config.flag("is_causal", False))
    elif nested.has("causal"):
        keys["attention.causal"] = flag(nested.flag("causal", False))
    elif any(sliding) and not use_swa:
        drafter.warnings.append(
            f"{sum(sliding)} of {layers} layers slide and the config has no is_causal: its authors mean sliding layers "
            "causal and full ones bidirectional inside a block; llama.cpp has one flag for all and drafts "
            "bidirectionally in every layer, which lowers acceptance"
        )
    return keys


def _layer_types(config: Config, layers: int, *, derive: bool) -> list[str]:
    types = config.strings("layer_types")
    if not types:
        # transformers' Qwen3 lets the layers from max_window_layers on slide
        first = config.optional_integer("max_window_layers") if derive else None
        return ["full_attention" if first is None or i < first else "sliding_attention" for i in range(layers)]
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if len(types) != layers or unknown:
        what = f"names {join_words(unknown)}" if unknown else f"has {len(types)} entries for {layers} layers"
        raise UserError(
            f"{config.where('layer_types')} {what}; full_attention or sliding_attention is expected for each layer"
        )
    return types


def _scale_keys(config: Config, nested: Config) -> Metadata:
    keys: Metadata = {}
    for name, key in (("output_multiplier", "logit_scale"), ("input_embedding_scale", "embedding_scale")):
        if (value := _either(nested, config, name).optional_number(name)) is not None:
            keys[key] = f32(value)
    cap = _either(nested, config, "final_logit_softcapping").optional_number("final_logit_softcapping")
    if cap is not None and cap > 0:
        keys["final_logit_softcapping"] = f32(cap)
    if (scale := nested.optional_number("attention_value_scale")) is not None:
        keys["attention.value_scale"] = f32(scale)
    activation = config.string("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        known = join_words(list(_ACTIVATIONS))
        raise UserError(f"{config.where('hidden_act')} is {activation!r}; llama.cpp's DFlash has {known}")
    if (name := _ACTIVATIONS[activation]) is not None:
        keys["hidden_act"] = text(name)
    return keys


def _rope_keys(drafter: Drafter, rope: Rope, target: Target) -> Metadata:
    keys: Metadata = {}
    if rope.partial is not None:
        keys["rope.dimension_count"] = u32(int(drafter.head_dim * rope.partial))
    if rope.freq_factors is not None:
        if target.mrope:
            raise UserError(
                f"{target.path}: the target has several rope axes (M-RoPE) and the drafter llama3 rope scaling; "
                "llama.cpp ignores the scaling in that case"
            )
        drafter.tensors.insert(0, OutTensor("rope_freqs.weight", np.array(rope.freq_factors, dtype=np.float32)))
    if target.mrope:
        keys |= sections_for_mrope(drafter.head_dim)
    elif rope.sections is not None:
        keys |= {"rope.dimension_sections": i32_array(rope.sections)}
    return keys


FAMILY = Family(
    name="DFlash",
    known="DFlash (z-lab: DFlashDraftModel, flat config)",
    architectures=ARCHITECTURES,
    recognises=lambda checkpoint: {"fc.weight", "hidden_norm.weight"} <= tensor_names(checkpoint),
    read=read,
    by_name=ARCHITECTURES,
)
