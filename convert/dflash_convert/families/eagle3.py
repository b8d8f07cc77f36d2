"""EAGLE3 in the flat layouts of SpecForge and vLLM: one Llama layer over [embedding | fused features of three taps].

The layer is named `midlayer.*` or `layers.0.*`. `d2t` is an offset (target id = draft id + d2t[draft id]); llama.cpp
stores the target ids themselves. `t2d` says the same once more and is not written.
"""

from __future__ import annotations

import numpy as np
from dflash_tools.errors import UserError

from dflash_convert.check import check_tensors
from dflash_convert.checkpoint import Checkpoint
from dflash_convert.drafter import Drafter, OutTensor
from dflash_convert.families.common import layer_tensors, refuse_keys, weight, without_model_prefix
from dflash_convert.families.family import Family, tensor_names
from dflash_convert.families.reduced_vocabulary import draft_vocab_size, reduced_shapes, target_ids
from dflash_convert.gguf_file import Metadata, flag, i32_array, u32
from dflash_convert.jsonfile import Config
from dflash_convert.rope import Rope, read_rope
from dflash_convert.shape import LAYER_NAMES, Shape, default_theta, layer_shapes, read_shape, with_model_defaults
from dflash_convert.target import Target
from dflash_convert.tensors import LazyTensor

ARCHITECTURES = frozenset({"LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM"})
N_TAPS = 3
_IDS = "eagle_aux_hidden_state_layer_ids"
_NAMES = {**LAYER_NAMES, "hidden_norm.weight": "attn_norm_2.weight"}


def read(checkpoint: Checkpoint, target: Target) -> Drafter:
    """Read an EAGLE3 checkpoint. Raises UserError where it is incomplete or asks for what llama.cpp cannot do."""
    config = with_model_defaults(checkpoint.config)
    refuse_keys(
        checkpoint,
        {
            "attention_bias": "llama.cpp's EAGLE3 has no attention biases",
            "mlp_bias": "llama.cpp's EAGLE3 has no biases",
            "quantization_config": "quantised checkpoints are not read; take the original one",
            "fc_norm": "norms per tapped layer are not supported",
            "norm_output": "feeding back the normed state is not supported",
        },
    )
    if config.string("hidden_act", "silu") not in ("silu", "swish"):
        raise UserError(f"{config.where('hidden_act')} is {config.string('hidden_act')!r}; llama.cpp's EAGLE3 has silu")
    shape = read_shape(config)
    if shape.layers != 1:
        raise UserError(f"{config.where('num_hidden_layers')} is {shape.layers}; llama.cpp's EAGLE3 has exactly one")
    tensors = _one_layer_name(without_model_prefix(checkpoint))
    draft_vocab = draft_vocab_size(config, tensors, shape.vocab)
    target_hidden = config.optional_integer("target_hidden_size", least=1) or target.hidden_size
    if target_hidden is None:
        raise UserError(f"{target.path}: hidden_size is not stated; EAGLE3 needs it for the width of its taps")
    notes: list[str] = []
    taps = _taps(config, target, notes)
    nested = config.section("eagle_config")
    norm_before_fc = nested.flag("norm_before_fc", config.flag("norm_before_fc", False))
    _check(checkpoint, tensors, shape, draft_vocab, target_hidden, target, norm_before_fc)
    rope = read_rope(config, shape.head_dim, default_theta(config))
    if rope.partial not in (None, 1.0):
        raise UserError(
            f"{config.where('partial_rotary_factor')} is {rope.partial}; llama.cpp's EAGLE3 rotates whole heads"
        )
    return Drafter(
        family="EAGLE3",
        arch="eagle3",
        switch="--eagle3",
        block_count=1,
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
        taps=taps,
        tensors=_tensors(tensors, shape, draft_vocab, rope),
        draft_vocab_size=draft_vocab,
        extra=_keys(config, shape, target_hidden, norm_before_fc, rope),
        notes=notes,
        warnings=list(rope.warnings),
    )


def _one_layer_name(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """`midlayer.*` under the name `layers.0.*`."""
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        short = "layers.0." + name.removeprefix("midlayer.") if name.startswith("midlayer.") else name
        if short in found:
            raise UserError(f"{tensor.file}: {name} stands twice, as midlayer.* and as layers.0.*")
        found[short] = tensor
    return found


def _taps(config: Config, target: Target, notes: list[str]) -> tuple[int, ...]:
    """Layers whose input is tapped.

    At the top level the ids are inputs. Inside `eagle_config` SpecForge and SGLang mean outputs, one less (vLLM reads
    the same key as inputs: the producer's meaning is taken). Without ids the rule of all engines holds: 2, L/2, L-3.
    """
    nested = config.section("eagle_config")
    if config.values.get(_IDS):
        ids = tuple(config.integers(_IDS))
    elif nested.values.get(_IDS):
        named = nested.integers(_IDS, least=-1)
        ids = tuple(i + 1 for i in named)
        notes.append(
            f"eagle_config names the layers {named} whose output is read (SpecForge's meaning), so the inputs of "
            f"layers {list(ids)} are tapped; llama.cpp's own converter ignores this key"
        )
    elif target.n_layers is None:
        raise UserError(
            f"{config.where(_IDS)} is missing, and {target.path} does not say how many layers it has, from which the "
            "tapped ones would follow"
        )
    else:
        n = target.n_layers
        ids = (2, n // 2, n - 3)
        notes.append(f"the config names no tapped layers: the usual ones for {n} layers are taken, {list(ids)}")
    if len(ids) != N_TAPS:
        raise UserError(f"{config.where(_IDS)} names {len(ids)} layers; llama.cpp's EAGLE3 taps exactly {N_TAPS}")
    return ids


def _check(
    checkpoint: Checkpoint,
    tensors: dict[str, LazyTensor],
    shape: Shape,
    draft_vocab: int,
    target_hidden: int,
    target: Target,
    norm_before_fc: bool,
) -> None:
    width = N_TAPS * target_hidden
    fc = tensors.get("fc.weight")
    if fc is not None and fc.shape != (shape.hidden, width):
        raise UserError(
            f"{fc.file}: fc.weight is {fc.shape}; {N_TAPS} tapped layers of a target with hidden size {target_hidden} "
            f"need {(shape.hidden, width)}. Is {target.path} the target this drafter was trained for?"
        )
    layer = {**layer_shapes(shape, 2 * shape.hidden), "hidden_norm.weight": (shape.hidden,)}
    required = {"fc.weight": (shape.hidden, width), "norm.weight": (shape.hidden,)}
    required |= {f"layers.0.{name}": s for name, s in layer.items()}
    head_required, optional = reduced_shapes(draft_vocab, shape.vocab, shape.hidden)
    required |= head_required
    optional["embed_tokens.weight"] = (shape.vocab, shape.hidden)
    if norm_before_fc:
        required["input_norm.weight"] = (width,)
    elif "input_norm.weight" in tensors:
        raise UserError(
            f"{tensors['input_norm.weight'].file}: holds input_norm.weight, but "
            f"{checkpoint.config.where('norm_before_fc')} is not true, so that the norm would not run"
        )
    check_tensors(checkpoint.directory, tensors, required, optional)


def _keys(config: Config, shape: Shape, target_hidden: int, norm_before_fc: bool, rope: Rope) -> Metadata:
    nested = config.section("eagle_config")
    keys: Metadata = {
        "vocab_size": u32(shape.vocab),
        "rope.dimension_count": u32(shape.head_dim),
        "target_hidden_size": u32(target_hidden),
        "norm_before_residual": flag(nested.flag("norm_before_residual", config.flag("norm_before_residual", False))),
        "norm_before_fc": flag(norm_before_fc),
    }
    if config.has("is_causal") and not config.flag("is_causal", True):
        keys["attention.causal"] = flag(False)
    if rope.sections is not None:
        keys["rope.dimension_sections"] = i32_array(rope.sections)
    return keys


def _tensors(tensors: dict[str, LazyTensor], shape: Shape, draft_vocab: int, rope: Rope) -> list[OutTensor]:
    found: list[OutTensor] = []
    if rope.freq_factors is not None:
        found.append(OutTensor("rope_freqs.weight", np.array(rope.freq_factors, dtype=np.float32)))
    for name, gguf_name in (
        ("embed_tokens.weight", "token_embd.weight"),
        ("fc.weight", "fc.weight"),
        ("input_norm.weight", "enc.output_norm.weight"),
    ):
        if name in tensors:
            found.append(weight(tensors[name], gguf_name))
    # Llama in GGUF rotates neighbours: dimension 2i comes from i, 2i + 1 from i + head_dim / 2
    half = shape.head_dim // 2
    order = tuple(i // 2 + half * (i % 2) for i in range(shape.head_dim))
    for tensor in layer_tensors(tensors, 0, _NAMES):
        rotated = tensor.name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight")
        found.append(OutTensor(tensor.name, tensor.source, order if rotated else None))
    found.append(weight(tensors["norm.weight"], "output_norm.weight"))
    if "lm_head.weight" in tensors:
        found.append(weight(tensors["lm_head.weight"], "output.weight"))
    if "d2t" in tensors:
        found.append(OutTensor("d2t", target_ids(tensors["d2t"], draft_vocab, shape.vocab)))
    return found


def _recognises(checkpoint: Checkpoint) -> bool:
    names = tensor_names(checkpoint)
    return "fc.weight" in names and any(n.startswith("midlayer.") or n == "layers.0.hidden_norm.weight" for n in names)


FAMILY = Family(
    name="EAGLE3",
    known="EAGLE3 (SpecForge: LlamaForCausalLMEagle3; vLLM: Eagle3LlamaForCausalLM)",
    architectures=ARCHITECTURES | {"LlamaForCausalLM"},
    recognises=_recognises,
    read=read,
    by_name=ARCHITECTURES,
)
