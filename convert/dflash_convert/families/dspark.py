"""DSpark over Qwen3-like layers, in the layouts of DeepSpec, SpecForge and speculators.

The backbone is DFlash's. DeepSpec keeps its keys at the top level and ships copies of the target's embeddings and head;
what it calls DFlash is its DSpark with `markov_rank` 0, not z-lab's block. SpecForge keeps its keys in `dflash_config`,
others of its files in `dspark_config`. speculators nests the transformer instead, and may have reduced the vocabulary.
"""

from __future__ import annotations

from dflash_convert.checkpoint import Checkpoint
from dflash_convert.drafter import Drafter
from dflash_convert.families.backbone import Layout, Places, read_backbone
from dflash_convert.families.block_attention import speculators_attention, zlab_attention
from dflash_convert.families.common import without_model_prefix
from dflash_convert.families.config_places import states
from dflash_convert.families.dflash import output_taps
from dflash_convert.families.dspark_heads import Heads, read_heads
from dflash_convert.families.family import Family, tensor_names
from dflash_convert.families.reduced_vocabulary import draft_vocab_size
from dflash_convert.families.speculators import (
    TAP_IDS,
    drafter_tensors,
    flat_config,
    input_taps,
    is_speculators,
    kind_of,
)
from dflash_convert.shape import MAX_LAYERS, with_model_defaults
from dflash_convert.target import Target

ARCHITECTURES = frozenset({
    "Qwen3DSparkModel", "DSparkDraftModel", "DSparkSpeculator", "Lfm2DSparkDraftModel", "LingDSparkModel",
})  # fmt: skip
SECTIONS = ("dflash_config", "dspark_config")
_KEYS = ("markov_rank", "markov_head_type", "dspark_config")
_HEADS = ("markov_head.", "confidence_head.")
_SPECULATORS_RANK = 256  # of its config class


def read(checkpoint: Checkpoint, target: Target) -> Drafter:
    """Read a DSpark checkpoint. Raises UserError where it is incomplete or asks for what llama.cpp cannot do."""
    nested = is_speculators(checkpoint)
    config = with_model_defaults(flat_config(checkpoint))
    own = Places((config,) if nested else (*(config.section(s) for s in SECTIONS), config))
    vocab = config.integer("vocab_size", least=1)
    notes: list[str] = []
    warnings: list[str] = []
    tensors = drafter_tensors(checkpoint, vocab, notes) if nested else without_model_prefix(checkpoint)
    layers = config.integer("num_hidden_layers", least=1, most=MAX_LAYERS)
    draft_vocab = draft_vocab_size(config, tensors, vocab)
    names_inputs = nested or states(config, TAP_IDS)
    heads = read_heads(
        own,
        tensors,
        # a file that does not say is of before 0.9 if nested, and those had DFlash's block
        anchor_first=not names_inputs,
        default_rank=_SPECULATORS_RANK if nested else 0,
        hidden=config.integer("hidden_size", least=1),
        vocab=vocab,
        draft_vocab=draft_vocab,
    )
    if nested:
        attention = speculators_attention(config, layers, non_causal=False)
    else:
        attention = zlab_attention(config, config.section(SECTIONS[0]), layers, warnings)
    layout = Layout(
        family="DSpark",
        config=config,
        own=own,
        tensors=tensors,
        taps=input_taps(config, target, notes) if names_inputs else output_taps(own),
        attention=attention,
        draft_vocab=draft_vocab,
        required=heads.required(),
        optional=heads.optional(),
    )
    drafter = read_backbone(checkpoint, layout, target)
    add_heads(drafter, heads, tensors)
    drafter.notes += notes + transform_notes(drafter)
    drafter.warnings += warnings
    return drafter


def add_heads(drafter: Drafter, heads: Heads, tensors: dict) -> None:
    """Append to a drafter what DSpark has besides the backbone."""
    drafter.extra |= heads.keys()
    drafter.tensors += heads.tensors(tensors)
    drafter.notes += heads.notes()


def transform_notes(drafter: Drafter) -> list[str]:
    """What to know of logits that are scaled or capped before the Markov bias is added."""
    if not {"logit_scale", "final_logit_softcapping"} & drafter.extra.keys():
        return []
    return ["logits are scaled or capped before the Markov bias, as the fork does (upstream's llama.cpp does not)"]


def _recognises(checkpoint: Checkpoint) -> bool:
    if is_speculators(checkpoint) and kind_of(checkpoint):
        return kind_of(checkpoint) == "dspark"
    config = checkpoint.config
    places = [config, *(config.section(s) for s in SECTIONS)]
    if any(p.has(k) for p in places for k in _KEYS) or any(p.string("projector_type") == "dspark" for p in places):
        return True
    return any(n.startswith(_HEADS) for n in tensor_names(checkpoint))


FAMILY = Family(
    name="DSpark",
    known="DSpark (DeepSpec: Qwen3DSparkModel; SpecForge and speculators: DSparkDraftModel; Lfm2, Ling)",
    architectures=ARCHITECTURES,
    recognises=_recognises,
    read=read,
    by_name=ARCHITECTURES,
)
