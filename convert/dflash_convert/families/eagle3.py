"""EAGLE3: one Llama layer over [embedding | fused features of tapped layers], as its several producers write it.

The layer is named `midlayer.*` (SafeAILab, SpecForge) or `layers.0.*` (vLLM, ModelOpt, speculators). Embeddings are
often left to the target. ModelOpt keeps flags in `eagle_config`, speculators nests the whole config. Layers of Qwen3
(speculators, DeepSpec) norm queries and keys; DeepSpec's drafters read five layers, all others mostly three.
"""

from __future__ import annotations

import numpy as np
from dflash_tools.errors import UserError

from dflash_convert.check import check_tensors
from dflash_convert.checkpoint import Checkpoint
from dflash_convert.drafter import Drafter, OutTensor
from dflash_convert.families.common import layer_tensors, weight, without_model_prefix
from dflash_convert.families.eagle3_taps import read_taps
from dflash_convert.families.family import Family, tensor_names
from dflash_convert.families.reduced_vocabulary import draft_vocab_size, reduced_shapes, target_ids
from dflash_convert.families.speculators import flat_config, is_speculators, kind_of
from dflash_convert.gguf_file import Metadata, flag, i32_array, u32
from dflash_convert.jsonfile import Config
from dflash_convert.rope import Rope, read_rope
from dflash_convert.shape import LAYER_NAMES, Shape, default_theta, layer_shapes, read_shape, with_model_defaults
from dflash_convert.shared_weights import same_numbers
from dflash_convert.target import Target
from dflash_convert.tensors import LazyTensor

FLAT_ARCHITECTURES = frozenset({"LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "Qwen3Eagle3Model"})
NESTED_ARCHITECTURES = frozenset({"Eagle3DraftModel", "Eagle3Speculator"})
_NAMES = {**LAYER_NAMES, "hidden_norm.weight": "attn_norm_2.weight"}
_HEAD_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
_ROTATED = {f"blk.0.attn_{n}{end}.weight" for n in "qk" for end in ("", "_norm")}

# What some drafters have and llama.cpp's EAGLE3 graph has not: keys that are set, beginnings of tensor names.
_UNSUPPORTED_KEYS = {
    "attention_bias": "llama.cpp's EAGLE3 has no attention biases",
    "mlp_bias": "llama.cpp's EAGLE3 has no biases",
    "quantization_config": "quantised checkpoints are not read; take the original one",
    "fc_norm": "llama.cpp's EAGLE3 has no norms per tapped layer",
    "norm_output": "llama.cpp's EAGLE3 feeds back the state before the norm, this drafter the one after it",
}
_UNSUPPORTED_TENSORS = {
    "fc_norm.": "llama.cpp's EAGLE3 has no norms per tapped layer",
    "aux_norm": "llama.cpp's EAGLE3 has no norms per tapped layer",
    "layers.0.self_attn.kv_a_proj_with_mqa.": "llama.cpp's EAGLE3 has no latent attention (MLA)",
    "layers.1.": "llama.cpp's EAGLE3 has exactly one layer",
    "parallel_draft_heads.": "llama.cpp's EAGLE3 has no parallel heads",
}


def read(checkpoint: Checkpoint, target: Target) -> Drafter:
    """Read an EAGLE3 checkpoint. Raises UserError where it is incomplete or asks for what llama.cpp cannot do."""
    config = with_model_defaults(flat_config(checkpoint))
    nested = config.section("eagle_config")
    tensors = _one_layer_name(without_model_prefix(checkpoint))
    _refuse_unsupported(config, nested, tensors)
    shape = read_shape(config)
    if shape.layers != 1:
        raise UserError(f"{config.where('num_hidden_layers')} is {shape.layers}; llama.cpp's EAGLE3 has exactly one")
    draft_vocab = draft_vocab_size(config, tensors, shape.vocab)
    target_hidden = config.optional_integer("target_hidden_size", least=1) or target.hidden_size
    if target_hidden is None:
        raise UserError(f"{target.path}: hidden_size is not stated; EAGLE3 needs it for the width of its taps")
    rope = read_rope(config, shape.head_dim, default_theta(config))
    notes = list(rope.notes)
    taps = read_taps(config, target, notes)
    norm_before_fc = nested.flag("norm_before_fc", config.flag("norm_before_fc", False))
    _check(checkpoint, tensors, shape, draft_vocab, len(taps.layers), target_hidden, target, norm_before_fc)
    tensors = _without_copies(tensors, target, notes)
    n_rot = int(shape.head_dim * (rope.partial or 1.0))
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
        taps=taps.layers,
        tap_ids=taps.ids,
        tensors=_tensors(tensors, shape, draft_vocab, rope, n_rot),
        draft_vocab_size=draft_vocab,
        extra={
            "vocab_size": u32(shape.vocab),
            "rope.dimension_count": u32(n_rot),
            "target_hidden_size": u32(target_hidden),
            "norm_before_residual": flag(_norm_before_residual(checkpoint, config, nested, notes)),
            "norm_before_fc": flag(norm_before_fc),
            **_attention_keys(config, rope),
        },
        notes=notes,
    )


def _refuse_unsupported(config: Config, nested: Config, tensors: dict[str, LazyTensor]) -> None:
    """Raises UserError, with the reason, for what would load and draft something else, or not load."""
    for place in (config, nested):
        for key, reason in _UNSUPPORTED_KEYS.items():
            if place.values.get(key):
                raise UserError(f"{place.where(key)} is set: {reason}")
    for start, reason in _UNSUPPORTED_TENSORS.items():
        tensor = next((t for n, t in tensors.items() if n.startswith(start)), None)
        if tensor is not None:
            raise UserError(f"{tensor.file}: holds {tensor.name}: {reason}")
    if not nested.flag("use_aux_hidden_state", True):
        raise UserError(
            f"{nested.where('use_aux_hidden_state')} is false: the drafter taps no layers, which is EAGLE before "
            "EAGLE3; llama.cpp has EAGLE3 only"
        )
    if "sliding_attention" in config.strings("layer_types"):
        raise UserError(f"{config.where('layer_types')}: the layer slides; llama.cpp's EAGLE3 has no window")
    if config.string("hidden_act", "silu") not in ("silu", "swish"):
        raise UserError(f"{config.where('hidden_act')} is {config.string('hidden_act')!r}; llama.cpp's EAGLE3 has silu")


def _norm_before_residual(checkpoint: Checkpoint, config: Config, nested: Config, notes: list[str]) -> bool:
    """Whether the residual starts from the normed feature.

    A flat config without the key means no. speculators' trainer defaults to yes and vLLM reads its files so, although
    the class of the config defaults to no, which only matters to a config written by hand.
    """
    key = "norm_before_residual"
    if nested.has(key) or config.has(key) or not is_speculators(checkpoint):
        return nested.flag(key, config.flag(key, False))
    notes.append(
        f"the config has no {key}: taken as true, as speculators trains and vLLM reads it; llama.cpp's own converter "
        "takes false"
    )
    return True


def _attention_keys(config: Config, rope: Rope) -> Metadata:
    keys: Metadata = {}
    if config.has("is_causal") and not config.flag("is_causal", True):
        keys["attention.causal"] = flag(False)
    if rope.sections is not None:
        keys["rope.dimension_sections"] = i32_array(rope.sections)
    return keys


def _one_layer_name(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """`midlayer.*` under the name `layers.0.*`."""
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        short = "layers.0." + name.removeprefix("midlayer.") if name.startswith("midlayer.") else name
        if short in found:
            raise UserError(f"{tensor.file}: {name} stands twice, as midlayer.* and as layers.0.*")
        found[short] = tensor
    return found


def _check(
    checkpoint: Checkpoint,
    tensors: dict[str, LazyTensor],
    shape: Shape,
    draft_vocab: int,
    n_taps: int,
    target_hidden: int,
    target: Target,
    norm_before_fc: bool,
) -> None:
    width = n_taps * target_hidden
    fc = tensors.get("fc.weight")
    if fc is not None and fc.shape != (shape.hidden, width):
        raise UserError(
            f"{fc.file}: fc.weight is {fc.shape}; {n_taps} tapped layers of a target with hidden size {target_hidden} "
            f"need {(shape.hidden, width)}. Is {target.path} the target this drafter was trained for?"
        )
    layer = {**layer_shapes(shape, 2 * shape.hidden), "hidden_norm.weight": (shape.hidden,)}
    if _norms_heads(checkpoint, tensors):
        layer |= {name: (shape.head_dim,) for name in _HEAD_NORMS}
    required = {"fc.weight": (shape.hidden, width), "norm.weight": (shape.hidden,)}
    required |= {f"layers.0.{name}": s for name, s in layer.items()}
    head_required, optional = reduced_shapes(draft_vocab, shape.vocab, shape.hidden)
    required |= head_required
    # llama.cpp takes missing embeddings and a missing head from the target, which must then be as wide
    own = shape.hidden != target_hidden
    (required if own else optional)["embed_tokens.weight"] = (shape.vocab, shape.hidden)
    if own:
        required["lm_head.weight"] = (draft_vocab, shape.hidden)
    if norm_before_fc:
        required["input_norm.weight"] = (width,)
    elif "input_norm.weight" in tensors:
        raise UserError(
            f"{tensors['input_norm.weight'].file}: holds input_norm.weight, but "
            f"{checkpoint.config.where('norm_before_fc')} is not true, so that the norm would not run"
        )
    check_tensors(checkpoint.directory, tensors, required, optional)


def _norms_heads(checkpoint: Checkpoint, tensors: dict[str, LazyTensor]) -> bool:
    """Whether queries and keys are normed: in layers of Qwen3, and wherever the file has such a norm."""
    if is_speculators(checkpoint):
        qwen3 = flat_config(checkpoint).string("model_type") == "qwen3"
    else:
        qwen3 = "Qwen3Eagle3Model" in checkpoint.config.strings("architectures")
    return qwen3 or any(f"layers.0.{name}" in tensors for name in _HEAD_NORMS)


def _without_copies(tensors: dict[str, LazyTensor], target: Target, notes: list[str]) -> dict[str, LazyTensor]:
    """The tensors but for embeddings and a full head that are the target's own, as llama.cpp takes those from it."""
    own = {"embed_tokens.weight": ("embeddings", target.embedding)}
    if "d2t" not in tensors:
        own["lm_head.weight"] = ("head", target.head)
    copies = {n: what for n, (what, of) in own.items() if n in tensors and same_numbers(tensors[n], of())}
    if copies:
        notes.append(f"{' and '.join(copies.values())} of its target, identical: left out")
    return {n: t for n, t in tensors.items() if n not in copies}


def _tensors(tensors: dict[str, LazyTensor], shape: Shape, draft_vocab: int, rope: Rope, n_rot: int) -> list[OutTensor]:
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
    # Llama in GGUF rotates neighbours: of the rotated dimensions, 2i comes from i and 2i + 1 from i + n_rot / 2
    order = tuple(i // 2 + n_rot // 2 * (i % 2) if i < n_rot else i for i in range(shape.head_dim))
    for tensor in layer_tensors(tensors, 0, _NAMES):
        rotated = tensor.name in _ROTATED
        found.append(OutTensor(tensor.name, tensor.source, order if rotated else None))
    found.append(weight(tensors["norm.weight"], "output_norm.weight"))
    if "lm_head.weight" in tensors:
        found.append(weight(tensors["lm_head.weight"], "output.weight"))
    if "d2t" in tensors:
        found.append(OutTensor("d2t", target_ids(tensors["d2t"], draft_vocab, shape.vocab)))
    return found


def _recognises(checkpoint: Checkpoint) -> bool:
    if is_speculators(checkpoint):
        return kind_of(checkpoint) == "eagle3"
    names = tensor_names(checkpoint)
    return "fc.weight" in names and any(n.startswith("midlayer.") or n == "layers.0.hidden_norm.weight" for n in names)


FAMILY = Family(
    name="EAGLE3",
    known="EAGLE3 (SpecForge, ModelOpt, SafeAILab: LlamaForCausalLMEagle3; vLLM: Eagle3LlamaForCausalLM; DeepSpec: "
    "Qwen3Eagle3Model; speculators)",
    architectures=FLAT_ARCHITECTURES | NESTED_ARCHITECTURES | {"LlamaForCausalLM"},
    recognises=_recognises,
    read=read,
    by_name=FLAT_ARCHITECTURES,
)
