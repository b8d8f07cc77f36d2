"""The layout of speculators, which wraps drafters of several families: its config made flat, and its conventions.

The transformer stands in `transformer_layer_config` (only what differs from the defaults of its model type); the
drafter's own keys stand beside it. Tapped layers are named by their *input*, where the flat layouts of DFlash name
layers by their output: so a reader takes the ids as they are. A drafter may have a vocabulary of its own, a selection
of the target's (`reduced_vocabulary`).
"""

from __future__ import annotations

from dflash_tools.errors import UserError, join_words

from dflash_convert.checkpoint import Checkpoint
from dflash_convert.families.common import without_model_prefix
from dflash_convert.families.config_places import DRAFTER_KEYS, TRANSFORMER, TRANSFORMER_KEYS
from dflash_convert.jsonfile import Config
from dflash_convert.shape import MODEL_TYPE_DEFAULTS
from dflash_convert.target import Target
from dflash_convert.tensors import LazyTensor

KIND = "speculators_model_type"
TAP_IDS = "aux_hidden_state_layer_ids"


def is_speculators(checkpoint: Checkpoint) -> bool:
    """Whether the config is nested as speculators nests it. Architectures do not tell: `DFlashDraftModel` is both."""
    return TRANSFORMER in checkpoint.config.values


def kind_of(checkpoint: Checkpoint) -> str:
    """What speculators calls the family: "dflash", "dflash2", "dspark", "eagle3", ...; "" if the config does not say.

    Raises UserError if a key that says it holds no string.
    """
    config = checkpoint.config
    return (config.string(KIND) or config.section("speculators_config").string("algorithm")).lower()


def flat_config(checkpoint: Checkpoint) -> Config:
    """One flat config: the transformer's keys, the drafter's own over them. A flat one comes back as it is.

    Size, rope and layer types hold as the section has them: what stands of them at the top is left over from other
    tools, and speculators does not read it there. `model_type` is the transformer's, qwen3 if it names none. Raises
    UserError if the section is no object or of a model type whose defaults are not known.
    """
    if not is_speculators(checkpoint):
        return checkpoint.config
    top = checkpoint.config
    section = top.section(TRANSFORMER)
    model_type = section.string("model_type") or "qwen3"
    if model_type not in MODEL_TYPE_DEFAULTS:
        raise UserError(
            f"{section.where('model_type')} is {model_type!r}; drafters of qwen3 and llama layers can be converted"
        )
    inherited = {k: v for k, v in section.values.items() if k not in DRAFTER_KEYS}
    rope = inherited.get("rope_parameters")
    if isinstance(rope, dict) and isinstance(rope.get("sliding_attention"), dict):
        inherited["rope_parameters"] = rope["sliding_attention"]  # speculators runs all layers with that one
    own = {k: v for k, v in top.values.items() if k not in inherited and k not in (TRANSFORMER, *TRANSFORMER_KEYS)}
    return Config(top.path, {**inherited, **own, "model_type": model_type})


def drafter_tensors(checkpoint: Checkpoint, vocab: int, notes: list[str]) -> dict[str, LazyTensor]:
    """The tensors of a drafter of the DFlash line, without those that speculators takes from the target at load.

    Some uploads hold them all the same: what the loss was computed with, the embeddings, and a head over the target's
    `vocab` tokens. Whatever such a file holds, speculators and vLLM run the target's; `notes` says what is left out.
    """
    tensors = without_model_prefix(checkpoint)
    targets = {"embed_tokens.weight", "verifier_norm.weight", "verifier_lm_head.weight"}
    head = tensors.get("lm_head.weight")
    if head is not None and head.shape[:1] == (vocab,):
        targets.add("lm_head.weight")
    if copies := sorted(targets & tensors.keys()):
        notes.append(f"{join_words(copies)} left out: speculators and vLLM take the target's, whatever the file holds")
    return {name: tensor for name, tensor in tensors.items() if name not in targets}


def input_taps(config: Config, target: Target, notes: list[str], key: str = TAP_IDS) -> tuple[int, ...]:
    """Layers whose input is tapped, in the order of the columns of `fc`; the number of layers names the final state.

    Without ids speculators' rule holds: 2, half of the target's layers, and the third from the end. Raises UserError if
    the target does not say how many it has.
    """
    if config.integers(key):
        return tuple(config.integers(key))
    n = target.n_layers
    if n is None:
        raise UserError(
            f"{config.where(key)} is missing, and {target.path} does not say how many layers it has, from which the "
            "tapped ones would follow"
        )
    ids = (2, n // 2, n - 3)
    notes.append(f"the config names no tapped layers: the usual ones for {n} layers are taken, {list(ids)}")
    return ids
