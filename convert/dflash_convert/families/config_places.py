"""Which place of a config holds where a key stands in several, and what to say of the others.

Flat layouts keep a drafter's own keys in a section (`dflash_config`, `dspark_config`, `eagle_config`) or at the top
level, and the section holds: so in z-lab's package, SGLang and vLLM. Its transformer's keys are read at the top level
alone. speculators has it the other way round: the transformer's keys are read in `transformer_layer_config` alone, the
drafter's at the top level alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from dflash_convert.jsonfile import Config
from dflash_convert.shape import MODEL_TYPE_DEFAULTS

TRANSFORMER = "transformer_layer_config"
SECTIONS = ("dflash_config", "dspark_config", "eagle_config")
# What belongs to the drafter and not to its transformer.
DRAFTER_KEYS = frozenset({
    "architectures", "auto_map", "aux_hidden_state_layer_ids", "block_size", "confidence_head_with_markov",
    "conv_group_size", "conv_kernel_size", "dflash_config", "draft_vocab_size", "dspark_config", "eagle_config",
    "eagle_aux_hidden_state_layer_ids", "enable_confidence_head", "fc_norm", "is_causal", "markov_head_type",
    "markov_rank", "mask_token_id", "norm_before_fc", "norm_before_residual", "norm_output", "num_target_layers",
    "sample_from_anchor", "selector_rank", "selector_top_k", "sliding_window_non_causal", "target_hidden_size",
    "target_layer_ids",
})  # fmt: skip
# What belongs to its transformer.
TRANSFORMER_KEYS = frozenset({key for defaults in MODEL_TYPE_DEFAULTS.values() for key in defaults}) | {
    "model_type", "rope_theta", "rope_scaling", "rope_parameters", "layer_types", "use_sliding_window", "hidden_act",
    "attention_bias", "mlp_bias",
}  # fmt: skip
# Read in a section as well as at the top level. (The taps of EAGLE3 have an order of their own, see `eagle3_taps`.)
_OF_BLOCKS = {
    "aux_hidden_state_layer_ids", "block_size", "confidence_head_with_markov", "conv_group_size", "conv_kernel_size",
    "enable_confidence_head", "final_logit_softcapping", "input_embedding_scale", "markov_head_type", "markov_rank",
    "mask_token_id", "output_multiplier", "sample_from_anchor", "selector_rank", "selector_top_k",
    "target_hidden_size", "target_layer_ids",
}  # fmt: skip
_OF_EAGLE3 = {"norm_before_fc", "norm_before_residual"}
_AT_THE_TOP = TRANSFORMER_KEYS - {"model_type"} | {"draft_vocab_size", "is_causal"}
_OF_SPECULATORS = DRAFTER_KEYS - {
    "architectures", "auto_map", "is_causal", "num_target_layers", "target_layer_ids", *SECTIONS,
}  # fmt: skip


def states(place: Config, key: str) -> bool:
    """Whether `place` says something with `key`: null and an empty list say nothing."""
    return place.has(key) and place.values[key] != []


def contradictions(config: Config) -> list[str]:
    """A sentence for each key that stands where nobody reads it, or where another place holds that differs."""
    *blocks, eagle3 = (config.section(name) for name in SECTIONS)
    if config.has(TRANSFORMER):
        section = config.section(TRANSFORMER)
        return [
            *_compare(sorted(TRANSFORMER_KEYS - {"model_type"}), [section], [config]),
            *_compare(sorted(_OF_SPECULATORS), [config], [section, *blocks]),
            *_compare(["is_causal"], [], [config]),
        ]
    return [
        *_compare(sorted(_OF_BLOCKS), [*blocks, config], [eagle3]),
        *_compare(sorted(_OF_EAGLE3), [eagle3, config], blocks),
        *_compare(sorted(_AT_THE_TOP), [config], [*blocks, eagle3]),
    ]


def _compare(keys: Sequence[str], read: Sequence[Config], unread: Sequence[Config]) -> list[str]:
    """Where places disagree on `keys`. Of those in `read` the first that states a key holds, none of `unread` does."""
    found = []
    for key in keys:
        holding = next((place for place in read if states(place, key)), None)
        if holding is None:
            found += [f"{_name(place, key)} is not read there" for place in unread if states(place, key)]
            continue
        value = holding.values[key]
        for place in (*read, *unread):
            if place.values.get(key) not in (None, value):
                found.append(
                    f"{_name(holding, key)} is {_shown(value)} and holds; {_name(place, key)} says "
                    f"{_shown(place.values[key])}"
                )
    return found


def _name(place: Config, key: str) -> str:
    return f"{place.prefix}{key}" if place.prefix else f"{key} at the top level"


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
