"""DFlash2: DFlash with short convolutions around attention and MLP, and a selector among the best tokens of each slot.

Both layouts have the same tensors; z-lab keeps the sizes in `dflash_config`, speculators at the top level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dflash_tools.errors import UserError

from dflash_convert.checkpoint import Checkpoint
from dflash_convert.drafter import Drafter
from dflash_convert.families.backbone import Layout, read_backbone
from dflash_convert.families.common import weight
from dflash_convert.families.dflash import has_backbone, scale_embeddings, speculators_layout, zlab_layout
from dflash_convert.families.family import Family, tensor_names
from dflash_convert.families.speculators import is_speculators
from dflash_convert.gguf_file import u32
from dflash_convert.shape import read_shape
from dflash_convert.target import Target

# sizes by their config keys, which are also llama.cpp's
SIZES = ("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k")
# speculators leaves out what is its class's default
_DEFAULTS = {"conv_kernel_size": 2, "conv_group_size": 16, "selector_rank": 256, "selector_top_k": 16}
_SELECTOR = {
    "candidate_selector.predecessor_codebook": "selector_predecessor.weight",
    "candidate_selector.successor_codebook": "selector_successor.weight",
    "candidate_selector.hidden_projection.weight": "selector_hidden.weight",
}
_CONV = {
    "attention_conv.base_kernel": "attn_conv_base",
    "attention_conv.kernel_projection.weight": "attn_conv_proj.weight",
    "mlp_conv.base_kernel": "ffn_conv_base",
    "mlp_conv.kernel_projection.weight": "ffn_conv_proj.weight",
}


def read(checkpoint: Checkpoint, target: Target) -> Drafter:
    """Read a DFlash2 checkpoint of either layout. Raises UserError where it is incomplete or cannot run."""
    said: list[str] = []
    if is_speculators(checkpoint):
        layout = speculators_layout(checkpoint, target, said, "DFlash2", non_causal=True)
        layout = replace(layout, config=layout.config.with_defaults(_DEFAULTS))
        layout = replace(layout, own=replace(layout.own, configs=(layout.config,)))
    else:
        layout = zlab_layout(checkpoint, said, "DFlash2")
    place = layout.own.of("sample_from_anchor")
    if place.flag("sample_from_anchor", False):
        raise UserError(
            f"{place.where('sample_from_anchor')} is true: llama.cpp's selector of DFlash2 does not draft from "
            "the anchor's own slot"
        )
    shape = read_shape(layout.config)
    if layout.draft_vocab is not None and layout.draft_vocab != shape.vocab:
        raise UserError(
            f"{layout.config.where('draft_vocab_size')} is {layout.draft_vocab}: the selector of DFlash2 needs the "
            f"target's whole vocabulary ({shape.vocab} tokens)"
        )
    sizes = _sizes(layout, shape.hidden)
    tensors = dict(layout.tensors)
    for name in list(tensors):  # as torch modules name them
        if name.removesuffix(".weight") in _SELECTOR:
            tensors[name.removesuffix(".weight")] = tensors.pop(name)
    required = {**_selector_shapes(sizes, shape.vocab, shape.hidden), **_conv_shapes(sizes, shape.layers, shape.hidden)}
    drafter = read_backbone(checkpoint, replace(layout, tensors=tensors, required=required), target)
    if is_speculators(checkpoint):
        drafter.notes += said
    else:
        drafter.warnings += said
        scale_embeddings(drafter, target)
    drafter.extra |= {name: u32(size) for name, size in sizes.items()}
    drafter.tensors += [weight(tensors[name], gguf_name) for name, gguf_name in _SELECTOR.items()]
    for i in range(shape.layers):
        drafter.tensors += [weight(tensors[f"layers.{i}.{n}"], f"blk.{i}.{g}") for n, g in _CONV.items()]
    return drafter


def _sizes(layout: Layout, hidden: int) -> dict[str, int]:
    sizes = {name: layout.own.of(name).integer(name, least=1, most=1 << 20) for name in SIZES}
    group, top_k = sizes["conv_group_size"], sizes["selector_top_k"]
    if hidden % group:
        where = layout.own.of("conv_group_size").where("conv_group_size")
        raise UserError(f"{where} is {group}, which does not divide hidden_size ({hidden})")
    if top_k * (top_k + 1) > hidden:
        where = layout.own.of("selector_top_k").where("selector_top_k")
        raise UserError(
            f"{where} is {top_k}: llama.cpp hands over k + k x k scores in a row of hidden_size ({hidden}), which is "
            "too narrow"
        )
    return sizes


def _selector_shapes(sizes: Mapping[str, int], vocab: int, hidden: int) -> dict[str, tuple[int, ...]]:
    rank = sizes["selector_rank"]
    predecessor, successor, projection = _SELECTOR
    return {predecessor: (vocab, rank), successor: (vocab, rank), projection: (rank, hidden)}


def _conv_shapes(sizes: Mapping[str, int], layers: int, hidden: int) -> dict[str, tuple[int, ...]]:
    kernel, groups = sizes["conv_kernel_size"], hidden // sizes["conv_group_size"]
    shapes = ((2, kernel, hidden), (2 * kernel * groups, hidden))
    return {f"layers.{i}.{name}": shapes[n % 2] for i in range(layers) for n, name in enumerate(_CONV)}


def _recognises(checkpoint: Checkpoint) -> bool:
    places = (checkpoint.config, checkpoint.config.section("dflash_config"))
    stated = any(p.has(key) for p in places for key in SIZES)
    return has_backbone(checkpoint) and (
        stated or any(n.startswith("candidate_selector.") for n in tensor_names(checkpoint))
    )


FAMILY = Family(
    name="DFlash2",
    known="DFlash2 (z-lab and speculators: DFlash2DraftModel)",
    architectures=frozenset({"DFlash2DraftModel", "DFlash2Speculator"}),
    recognises=_recognises,
    read=read,
    by_name=frozenset({"DFlash2DraftModel", "DFlash2Speculator"}),
)
