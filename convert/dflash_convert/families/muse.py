"""The assistant of Muse-Glimmer, as transformers has it: DFlash with other names and another set of defaults.

All keys stand at the top level. Its layers are bidirectional inside a block, sliding or not.
"""

from __future__ import annotations

from dflash_tools.errors import UserError

from dflash_convert.checkpoint import Checkpoint
from dflash_convert.drafter import Drafter
from dflash_convert.families.backbone import Layout, Places, read_backbone
from dflash_convert.families.block_attention import SLIDING, BlockAttention, layer_types
from dflash_convert.families.common import without_model_prefix
from dflash_convert.families.dflash import output_taps
from dflash_convert.families.family import Family, tensor_names
from dflash_convert.jsonfile import Config
from dflash_convert.shape import MAX_LAYERS
from dflash_convert.target import Target

# What transformers' MuseGlimmerAssistantConfig fills in.
_DEFAULTS = {
    "hidden_size": 6656,
    "intermediate_size": 19968,
    "num_hidden_layers": 5,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "sliding_window": 2048,
    "block_size": 16,
    "mask_token_id": 201818,
    "target_layer_ids": [1, 13, 25, 37, 49],
}
_THETA = 500000.0
_NAMES = {"encoder.fc.weight": "fc.weight", "encoder.output_norm_enc.weight": "hidden_norm.weight"}


def read(checkpoint: Checkpoint, target: Target) -> Drafter:
    """Read a Muse-Glimmer assistant. Raises UserError where it is incomplete or the target does not say its size."""
    config = _completed(checkpoint.config, target)
    layers = config.integer("num_hidden_layers", least=1, most=MAX_LAYERS)
    window = config.integer("sliding_window", least=1)
    types = layer_types(config, layers, derive=False) if config.strings("layer_types") else [SLIDING] * layers
    tensors = without_model_prefix(checkpoint)
    own = Places((config,))
    layout = Layout(
        family="Muse-Glimmer assistant",
        config=config,
        own=own,
        tensors={_NAMES.get(name, name): tensor for name, tensor in tensors.items()},
        taps=output_taps(own),
        attention=BlockAttention(tuple(t == SLIDING for t in types), (False,) * layers, window),
    )
    return read_backbone(checkpoint, layout, target)


def _completed(config: Config, target: Target) -> Config:
    """`config` with transformers' defaults; it states no vocabulary, which is the target's."""
    config = config.with_defaults(_DEFAULTS)
    if not config.has("rope_parameters") and not config.has("rope_scaling"):
        config = config.with_defaults({"rope_theta": _THETA})
    if config.has("vocab_size"):
        return config
    if target.vocab_size is None:
        raise UserError(f"{target.path}: vocab_size is not stated; the drafter takes it from the target")
    return config.with_defaults({"vocab_size": target.vocab_size})


FAMILY = Family(
    name="Muse-Glimmer assistant",
    known="Muse-Glimmer assistant (MuseGlimmerAssistantModel)",
    architectures=frozenset({"MuseGlimmerAssistantModel"}),
    recognises=lambda checkpoint: "encoder.fc.weight" in tensor_names(checkpoint),
    read=read,
    by_name=frozenset({"MuseGlimmerAssistantModel"}),
)
