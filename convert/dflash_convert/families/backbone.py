"""The transformer that all families of the DFlash line share: `fc` + `hidden_norm` + Qwen3-like layers.

The block [anchor, mask, mask, ...] attends to keys and values made from the target's hidden states; embeddings and
head are the target's unless the checkpoint brings its own. Families differ in where they say what (`Layout`) and in
what they add; all that a reader does not find out itself is done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from dflash_tools.errors import UserError, join_words

from dflash_convert.check import check_tensors, shape_text
from dflash_convert.checkpoint import Checkpoint
from dflash_convert.drafter import Drafter, OutTensor
from dflash_convert.families.block_attention import BlockAttention
from dflash_convert.families.common import layer_tensors, refuse_keys, weight
from dflash_convert.families.config_places import states
from dflash_convert.families.reduced_vocabulary import reduced_shapes, target_ids
from dflash_convert.gguf_file import Metadata, f32, i32_array, text, u32
from dflash_convert.jsonfile import Config
from dflash_convert.mask_row import read_mask_row, settle_mask_token
from dflash_convert.rope import Rope, read_rope, sections_for_mrope
from dflash_convert.shape import LAYER_NAMES, Shape, default_theta, layer_shapes, read_shape
from dflash_convert.shared_weights import choose_embedding_and_head
from dflash_convert.target import Target
from dflash_convert.tensors import LazyTensor

_BIASES = {f"self_attn.{n}_proj.bias": f"attn_{'output' if n == 'o' else n}.bias" for n in "qkvo"}
_NAMES = {**LAYER_NAMES, **_BIASES}
_ROTATED = tuple(f"self_attn.{n}{end}" for n in "qk" for end in ("_proj.weight", "_proj.bias", "_norm.weight"))
_SINKS = ("self_attn.sinks", "self_attn.attention_sink_bias")
_ACTIVATIONS = {"silu": None, "swish": None, "gelu": "gelu", "gelu_pytorch_tanh": "gelu_pytorch_tanh"}
# of these the first dimension may be the vocabulary
_BY_TOKEN = {"embed_tokens.weight", "lm_head.weight", "t2d", "candidate_selector.predecessor_codebook",
             "markov_head.markov_w1.weight"}  # fmt: skip
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Places:
    """Where the drafter's own keys may stand; of a key in several, the first place holds."""

    configs: tuple[Config, ...]

    def of(self, key: str) -> Config:
        """The place that has `key`; the first one if none has it."""
        return next((c for c in self.configs if states(c, key)), self.configs[0])

    def mask_token(self) -> int:
        place = self.of("mask_token_id")
        if not place.has("mask_token_id"):
            also = ", and there is none at the top level either" if len(self.configs) > 1 else ""
            raise UserError(
                f"{place.where('mask_token_id')} is missing{also}: without the token that fills the block the drafter "
                "cannot run"
            )
        return place.integer("mask_token_id")


@dataclass(frozen=True)
class Layout:
    """A checkpoint of the DFlash line, with what its families write in different places resolved.

    family: for messages
    config: the transformer's keys, completed by the defaults of its model type
    own: where the drafter's keys stand
    tensors: by z-lab's names (`fc.weight`, `hidden_norm.weight`, `layers.<i>.*`), without prefix
    taps: layers of the target whose *input* is read
    default_block: the block of a config that states none
    draft_vocab: rows of the head if they are fewer than the target's tokens
    required / optional: shapes of tensors that the family adds
    """

    family: str
    config: Config
    own: Places
    tensors: dict[str, LazyTensor]
    taps: tuple[int, ...]
    attention: BlockAttention
    default_block: int = 16
    draft_vocab: int | None = None
    required: Shapes = field(default_factory=dict)
    optional: Shapes = field(default_factory=dict)


def read_backbone(checkpoint: Checkpoint, layout: Layout, target: Target) -> Drafter:
    """The description of a drafter whose family adds nothing; a reader appends what its family has besides.

    Raises UserError where the checkpoint is incomplete or asks for what llama.cpp cannot do.
    """
    config, own, tensors = layout.config, layout.own, layout.tensors
    refuse_keys(
        checkpoint,
        {
            "quantization_config": "quantised checkpoints are not read; take the original one",
            "use_gemma_norm": "norms that add 1 to their weight are not supported",
        },
    )
    shape = read_shape(config)
    rope = read_rope(config, shape.head_dim, default_theta(config))
    target_hidden = _target_hidden(layout, shape, target)
    _check(checkpoint, layout, shape, target_hidden, target)
    drafter = Drafter(
        family=layout.family,
        arch="dflash",
        switch="--dflash",
        block_count=shape.layers,
        hidden_size=shape.hidden,
        target_hidden_size=target_hidden,
        feed_forward_size=shape.feed_forward,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        head_dim_stated=shape.head_dim_stated,
        rms_eps=shape.rms_eps,
        vocab_size=shape.vocab,
        context_length=shape.context,
        rope=rope,
        taps=layout.taps,
        tap_ids=_tap_ids(layout),
        tensors=_tensors(tensors, shape.layers, _is_interleaved(config), shape.head_dim),
        mask_token_id=own.mask_token(),
        block_size=own.of("block_size").optional_integer("block_size", least=2, most=1024) or layout.default_block,
        draft_vocab_size=layout.draft_vocab,
        notes=[*layout.attention.notes(), *rope.notes, *_notes_on_ids(layout)],
    )
    drafter.extra = {
        "block_size": u32(drafter.block_size or layout.default_block),
        **layout.attention.keys(),
        **_scale_keys(config, own),
        **_rope_keys(drafter, rope, target),
    }
    if layout.draft_vocab is not None and layout.draft_vocab < shape.vocab:
        drafter.tensors.append(OutTensor("d2t", target_ids(tensors["d2t"], layout.draft_vocab, shape.vocab)))
    mask = read_mask_row(checkpoint.directory, shape.hidden)
    by_token = {n for n, t in tensors.items() if t.shape and t.shape[0] == shape.vocab} & _BY_TOKEN
    place = own.of("mask_token_id").where("mask_token_id")
    settle_mask_token(drafter, mask, place, target, own_vocabulary=bool(by_token))
    drafter.tensors += choose_embedding_and_head(checkpoint, drafter, tensors, target, mask)
    return drafter


def _tap_ids(layout: Layout) -> tuple[int, ...]:
    """The tapped layers as the file names them: by their inputs (speculators) or, one less, by their outputs."""
    inputs, outputs = _ids(layout)
    return inputs if inputs == layout.taps else outputs


def _ids(layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    keys = ("aux_hidden_state_layer_ids", "target_layer_ids")
    inputs, outputs = (tuple(layout.own.of(key).integers(key, least=-1)) for key in keys)
    return inputs, outputs


def _notes_on_ids(layout: Layout) -> list[str]:
    """What of two keys that name the tapped layers in two ways is not held to."""
    inputs, outputs = _ids(layout)
    if not inputs or not outputs or inputs == tuple(i + 1 for i in outputs):
        return []
    return [
        f"aux_hidden_state_layer_ids {list(inputs)} are inputs of layers, target_layer_ids {list(outputs)} outputs, "
        f"and they disagree: the inputs of {list(layout.taps)} are tapped"
    ]


def _target_hidden(layout: Layout, shape: Shape, target: Target) -> int:
    """The width of one tap: as the config says, else the target's hidden size, else the drafter's own."""
    stated = layout.own.of("target_hidden_size").optional_integer("target_hidden_size", least=1)
    return stated or target.hidden_size or shape.hidden


def _check(checkpoint: Checkpoint, layout: Layout, shape: Shape, target_hidden: int, target: Target) -> None:
    tensors = layout.tensors
    _check_fc(checkpoint, tensors, shape.hidden, len(layout.taps), target_hidden, target)
    required: dict[str, tuple[int, ...]] = {
        "fc.weight": (shape.hidden, len(layout.taps) * target_hidden),
        "hidden_norm.weight": (shape.hidden,),
        "norm.weight": (shape.hidden,),
        **layout.required,
    }
    optional: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (shape.vocab, shape.hidden), **layout.optional}
    if layout.draft_vocab is None:
        optional["lm_head.weight"] = (shape.vocab, shape.hidden)
    else:
        head, besides = reduced_shapes(layout.draft_vocab, shape.vocab, shape.hidden)
        required |= head
        optional |= besides
    nested = layout.config.section("dflash_config")
    sinks = nested.flag("attention_sink_bias", False)
    biased = layout.config.flag("attention_bias", False)
    for i in range(shape.layers):
        layer = dict(layer_shapes(shape, shape.hidden))
        layer |= {f"self_attn.{n}_norm.weight": (shape.head_dim,) for n in "qk"}
        if biased:
            layer |= {n: (layer[n.removesuffix("bias") + "weight"][0],) for n in _BIASES}
        required |= {f"layers.{i}.{name}": s for name, s in layer.items()}
        names = [n for s in _SINKS for n in (f"layers.{i}.{s}", f"layers.{i}.{s}.weight")]
        optional |= {n: (shape.heads,) for n in names}
        if sinks and not any(n in tensors for n in names):
            raise UserError(f"{checkpoint.directory}: layers.{i}: attention_sink_bias is set but there are no sinks")
        if not biased and (extra := next((n for n in _BIASES if f"layers.{i}.{n}" in tensors), None)):
            raise UserError(
                f"{checkpoint.directory}: layers.{i}.{extra} is there, but "
                f"{layout.config.where('attention_bias')} is not true, so that it would not run"
            )
    check_tensors(checkpoint.directory, tensors, required, optional)


def _check_fc(
    checkpoint: Checkpoint, tensors: Mapping[str, LazyTensor], hidden: int, n_taps: int, width: int, target: Target
) -> None:
    """The width of `fc` says most about a wrong target or wrong taps, so it has its own message."""
    fc = tensors.get("fc.weight")
    if fc is not None and fc.shape != (hidden, n_taps * width):
        raise UserError(
            f"{fc.file}: fc.weight is {shape_text(fc.shape)}; {n_taps} tapped layers of a target with hidden size "
            f"{width} need {shape_text((hidden, n_taps * width))}. Is {target.path} the target this drafter was "
            "trained for?"
        )
    if width != hidden:
        raise UserError(
            f"{checkpoint.config.where('hidden_size')} is {hidden}, the tapped layers of {target.path} are {width} "
            "wide; llama.cpp runs DFlash drafters only at their target's hidden size. Is the target the one it was "
            "trained for?"
        )


def _is_interleaved(config: Config) -> bool:
    return not (config.flag("rope_is_neox_style", True) and config.flag("is_neox_style", True))


def _tensors(tensors: Mapping[str, LazyTensor], layers: int, interleaved: bool, head_dim: int) -> list[OutTensor]:
    # llama.cpp rotates halves (NeoX): of an interleaved pair order, the even dimensions come first, then the odd
    order = (*range(0, head_dim, 2), *range(1, head_dim, 2)) if interleaved else None
    found = [
        weight(tensors["fc.weight"], "fc.weight"),
        weight(tensors["hidden_norm.weight"], "enc.output_norm.weight"),
        weight(tensors["norm.weight"], "output_norm.weight"),
    ]
    rotated = {tensors[n].name for i in range(layers) for end in _ROTATED if (n := f"layers.{i}.{end}") in tensors}
    for i in range(layers):
        found += [
            OutTensor(t.name, t.source, order) if t.source.name in rotated else t  # type: ignore[union-attr]
            for t in layer_tensors(tensors, i, _NAMES)
        ]
        for name in _SINKS:
            for suffix in ("", ".weight"):
                if (sinks := tensors.get(f"layers.{i}.{name}{suffix}")) is not None:
                    found.append(weight(sinks, f"blk.{i}.attn_sinks.weight"))
    return found


def _scale_keys(config: Config, own: Places) -> Metadata:
    keys: Metadata = {}
    for name, key in (("output_multiplier", "logit_scale"), ("input_embedding_scale", "embedding_scale")):
        if (value := own.of(name).optional_number(name)) is not None:
            if value == 0:
                raise UserError(f"{own.of(name).where(name)} is 0, which leaves nothing of what it multiplies")
            keys[key] = f32(value)
    place = own.of("final_logit_softcapping")
    cap = place.optional_number("final_logit_softcapping")
    if cap is not None and cap < 0:
        raise UserError(f"{place.where('final_logit_softcapping')} is {cap:g}; a positive number is expected, or 0")
    if cap:
        keys["final_logit_softcapping"] = f32(cap)
    if (scale := config.section("dflash_config").optional_number("attention_value_scale")) is not None:
        keys["attention.value_scale"] = f32(scale)
    activation = config.string("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        known = join_words(list(_ACTIVATIONS))
        raise UserError(f"{config.where('hidden_act')} is {activation!r}; llama.cpp's DFlash has {known}")
    if (name := _ACTIVATIONS[activation]) is not None:
        keys["hidden_activation"] = text(name)
    return keys


def _rope_keys(drafter: Drafter, rope: Rope, target: Target) -> Metadata:
    keys: Metadata = {}
    if rope.partial is not None:
        keys["rope.dimension_count"] = u32(int(drafter.head_dim * rope.partial))
    if rope.freq_factors is not None:
        if target.mrope:
            drafter.notes.append(
                "rope scaled frequency by frequency, of a drafter whose target has several rope axes (M-RoPE): the "
                "fork does so (upstream's llama.cpp ignores it there)"
            )
        drafter.tensors.insert(0, OutTensor("rope_freqs.weight", np.array(rope.freq_factors, dtype=np.float32)))
    if target.mrope:
        keys |= sections_for_mrope(drafter.head_dim)
    elif rope.sections is not None:
        keys |= {"rope.dimension_sections": i32_array(rope.sections)}
    return keys
