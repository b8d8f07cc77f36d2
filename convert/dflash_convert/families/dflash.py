"""DFlash, first version, in the layouts of z-lab (flat config) and of speculators (nested one).

Layer ids, defaults and causality differ between the two; tensors do not, but for a reduced vocabulary, which only
speculators has. `DFlashDraftModel` names both layouts.
"""

from __future__ import annotations

from dflash_tools.errors import UserError

from dflash_convert.checkpoint import Checkpoint
from dflash_convert.drafter import Drafter
from dflash_convert.families.backbone import Layout, Places, read_backbone
from dflash_convert.families.block_attention import speculators_attention, zlab_attention
from dflash_convert.families.common import without_model_prefix
from dflash_convert.families.dspark_heads import Heads
from dflash_convert.families.family import Family, tensor_names
from dflash_convert.families.reduced_vocabulary import draft_vocab_size
from dflash_convert.families.speculators import drafter_tensors, flat_config, input_taps, is_speculators
from dflash_convert.gguf_file import f32
from dflash_convert.shape import MAX_LAYERS, with_model_defaults
from dflash_convert.target import Target

_LAYERS = {"least": 1, "most": MAX_LAYERS}


def read(checkpoint: Checkpoint, target: Target) -> Drafter:
    """Read a z-lab DFlash checkpoint. Raises UserError where it is incomplete or asks for what llama.cpp cannot do."""
    warnings: list[str] = []
    layout = zlab_layout(checkpoint, warnings)
    drafter = read_backbone(checkpoint, layout, target)
    drafter.warnings += warnings
    scale_embeddings(drafter, target)
    _draft_from_anchor(drafter, layout)
    return drafter


def read_speculators(checkpoint: Checkpoint, target: Target) -> Drafter:
    """Read a DFlash checkpoint of speculators. Raises UserError as `read` does."""
    notes: list[str] = []
    layout = speculators_layout(checkpoint, target, notes)
    drafter = read_backbone(checkpoint, layout, target)
    drafter.notes += notes
    _draft_from_anchor(drafter, layout)
    return drafter


def _draft_from_anchor(drafter: Drafter, layout: Layout) -> None:
    """Have slot k predict the token after its own position if the config says so: llama.cpp's driver of DSpark reads
    blocks so."""
    if not layout.own.of("sample_from_anchor").flag("sample_from_anchor", False):
        return
    vocab, draft_vocab = drafter.vocab_size, drafter.draft_vocab_size or drafter.vocab_size
    heads = Heads(0, None, anchor_first=True, hidden=drafter.hidden_size, vocab=vocab, draft_vocab=draft_vocab)
    drafter.extra |= heads.keys()
    drafter.tensors += heads.tensors({})
    drafter.notes += heads.notes()


def scale_embeddings(drafter: Drafter, target: Target) -> None:
    """Scale the embeddings of a z-lab drafter as its target scales its own, unless the config states a scale."""
    scale = scale_of_embeddings(target, drafter.hidden_size)
    if scale is None or "embedding_scale" in drafter.extra:
        return
    drafter.extra["embedding_scale"] = f32(scale)
    drafter.notes.append(
        f"embeddings are scaled by {scale:.4g}, the root of the hidden size, as {target.architecture} scales its own; "
        "input_embedding_scale in the config would say otherwise"
    )


def scale_of_embeddings(target: Target, hidden: int) -> float | None:
    """The factor that the embedding layer of a Gemma target puts on its table's rows; None for other targets.

    z-lab trains on what the layer gives: its MLX backend and its patch for vLLM multiply by the factor (the torch
    backend, made for other targets, does not).
    """
    return hidden**0.5 if target.architecture.lower().startswith("gemma") else None


def zlab_layout(checkpoint: Checkpoint, warnings: list[str], family: str = "DFlash") -> Layout:
    """Where z-lab writes what: drafter keys in `dflash_config` or beside it, taps by the layers' *outputs*."""
    config = with_model_defaults(checkpoint.config)
    nested = config.section("dflash_config")
    own = Places((nested, config))
    layers = config.integer("num_hidden_layers", **_LAYERS)
    return Layout(
        family=family,
        config=config,
        own=own,
        tensors=without_model_prefix(checkpoint),
        taps=output_taps(own),
        attention=zlab_attention(config, nested, layers, warnings),
    )


def speculators_layout(
    checkpoint: Checkpoint, target: Target, notes: list[str], family: str = "DFlash", *, non_causal: bool = False
) -> Layout:
    """Where speculators writes what; `non_causal` is its default of `sliding_window_non_causal` for the family."""
    config = with_model_defaults(flat_config(checkpoint))
    vocab = config.integer("vocab_size", least=1)
    tensors = drafter_tensors(checkpoint, vocab, notes)
    return Layout(
        family=family,
        config=config,
        own=Places((config,)),
        tensors=tensors,
        taps=input_taps(config, target, notes),
        attention=speculators_attention(config, config.integer("num_hidden_layers", **_LAYERS), non_causal=non_causal),
        default_block=8,
        draft_vocab=draft_vocab_size(config, tensors, vocab),
    )


def output_taps(own: Places) -> tuple[int, ...]:
    """Layers whose input is tapped: z-lab names the layer whose *output* it reads, one less."""
    place = own.of("target_layer_ids")
    ids = place.integers("target_layer_ids", least=-1)
    if not ids:
        raise UserError(
            f"{place.where('target_layer_ids')} is missing: the target layers that the drafter reads cannot be guessed"
        )
    return tuple(i + 1 for i in ids)


def has_backbone(checkpoint: Checkpoint) -> bool:
    """Whether the tensors of the DFlash line are there, under z-lab's names."""
    return {"fc.weight", "hidden_norm.weight"} <= tensor_names(checkpoint)


FAMILY = Family(
    name="DFlash",
    known="DFlash (z-lab: DFlashDraftModel, flat config)",
    architectures=frozenset({"DFlashDraftModel"}),
    recognises=lambda checkpoint: has_backbone(checkpoint) and not is_speculators(checkpoint),
    read=read,
    by_name=frozenset({"DFlashDraftModel"}),
)
SPECULATORS = Family(
    name="DFlash of speculators",
    known="DFlash (speculators: DFlashDraftModel, DFlashSpeculator)",
    architectures=frozenset({"DFlashDraftModel", "DFlashSpeculator"}),
    recognises=lambda checkpoint: has_backbone(checkpoint) and is_speculators(checkpoint),
    read=read_speculators,
    by_name=frozenset({"DFlashSpeculator"}),
)
