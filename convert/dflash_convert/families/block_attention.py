"""Which keys the slots of a DFlash block see in each layer: sliding windows, and causality inside the block.

Windows are llama.cpp's own keys. For causality it has one flag, `attention.causal`, for the whole drafter. Layers that
differ are written as `attention.causal_pattern`, one flag a layer, which the fork reads and upstream ignores (it then
drafts bidirectionally in every layer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dflash_tools.errors import UserError, join_words

from dflash_convert.gguf_file import Metadata, flag, flag_array, u32
from dflash_convert.jsonfile import Config

FULL, SLIDING = "full_attention", "sliding_attention"
BOUNDLESS = 1 << 20  # wider than any context, and small enough for llama.cpp to multiply by the number of slots


@dataclass(frozen=True)
class BlockAttention:
    """`sliding` and `causal`: one flag a layer. `window`: positions that a sliding layer sees, its own included.

    stated: the config names one causality for all layers. It is written then, and where layers slide, even if it is
    llama.cpp's default: a file with sliding layers that says nothing could mean either.
    contradicted: what else the config says, a sentence each.
    """

    sliding: tuple[bool, ...]
    causal: tuple[bool, ...]
    window: int | None
    stated: bool = False
    contradicted: tuple[str, ...] = ()

    def keys(self) -> Metadata:
        """GGUF keys without the architecture's prefix."""
        keys: Metadata = {}
        sliding, window = self.sliding, self.window
        if self.mixed and not window:
            # the fork has a mask for the sliding layers and one for the others: a window that hides nothing parts them
            sliding, window = self.causal, BOUNDLESS
        # a window that no layer has is not written: llama.cpp aborts on it when it makes the cache
        if window and any(sliding):
            keys["attention.sliding_window"] = u32(window)
            keys["attention.sliding_window_pattern"] = flag_array(list(sliding))
        if self.mixed:
            keys["attention.causal_pattern"] = flag_array(list(self.causal))
        elif self.stated or self.causal[0] or any(self.sliding):
            keys["attention.causal"] = flag(self.causal[0])
        return keys

    @property
    def mixed(self) -> bool:
        return len(set(self.causal)) > 1

    def notes(self) -> list[str]:
        """What a user should know: what of the config does not hold, and what no key of upstream's can say."""
        said = [*self.contradicted]
        if self.mixed:
            said.append(
                f"{sum(self.causal)} of {len(self.causal)} layers are causal inside a block, the others bidirectional: "
                "written for each layer, which the fork reads (upstream's llama.cpp drafts bidirectionally in all of "
                "them)"
            )
        return said


def zlab_attention(config: Config, nested: Config, layers: int, warnings: list[str]) -> BlockAttention:
    """The rule of z-lab's `dflash` package and of SGLang.

    One flag (`is_causal`, or `causal` in dflash_config) holds for all layers. Without it sliding layers are causal and
    full ones bidirectional, also where no window is in use; `use_swa` means all layers windowed and bidirectional.
    """
    use_swa, use_window = nested.flag("use_swa", False), config.flag("use_sliding_window", False)
    window = config.optional_integer("sliding_window") if use_window or config.string("model_type") != "qwen3" else None
    types = layer_types(config, layers, derive=bool(window))
    own_window = nested.optional_integer("swa_window_size")
    slide = [t == SLIDING for t in types]
    said = []
    if own_window and window and own_window != window and (use_swa or any(slide)):
        said.append(f"dflash_config.swa_window_size is {own_window} and holds; sliding_window says {window}")
    if use_swa and config.has("layer_types") and not all(slide):
        said.append("dflash_config.use_swa is True and holds, all layers slide; layer_types says otherwise")
    window = own_window or window
    sliding = [True] * layers if use_swa else slide
    if not (window and (use_swa or use_window)):
        window = None
        if any(sliding):
            warnings.append(
                f"{config.where('layer_types')} has sliding layers but no window is in use; they see the whole context"
            )
    flags = [c.flag(k, False) for c, k in ((config, "is_causal"), (nested, "causal")) if c.has(k)]
    if len(set(flags)) > 1:
        said.append(f"is_causal at the top level is {flags[0]} and holds; dflash_config.causal says {flags[1]}")
    stated = flags[0] if flags else None
    unstated = [False] * layers if use_swa else slide
    causal = unstated if stated is None else [stated] * layers
    return BlockAttention(tuple(sliding), tuple(causal), window, stated is not None, tuple(said))


def speculators_attention(config: Config, layers: int, *, non_causal: bool) -> BlockAttention:
    """The rule that speculators trains with: full layers are bidirectional, and so are sliding ones if `non_causal`.

    `non_causal` is what holds if `sliding_window_non_causal` is not there.
    """
    use_window = config.flag("use_sliding_window", config.string("model_type") != "qwen3")
    window = config.optional_integer("sliding_window") if use_window else None
    types = layer_types(config, layers, derive=bool(window))
    sliding = [t == SLIDING and bool(window) for t in types]
    bidirectional = config.flag("sliding_window_non_causal", non_causal)
    causal = [s and not bidirectional for s in sliding]
    return BlockAttention(tuple(sliding), tuple(causal), window if any(sliding) else None)


def layer_types(config: Config, layers: int, *, derive: bool) -> Sequence[str]:
    """`layer_types`, one a layer. If they are absent all are full, or, with `derive`, as Qwen3's default has it."""
    types = config.strings("layer_types")
    if not types:
        # transformers' Qwen3 lets the layers from max_window_layers on slide
        first = config.optional_integer("max_window_layers") if derive else None
        return [FULL if first is None or i < first else SLIDING for i in range(layers)]
    unknown = sorted(set(types) - {FULL, SLIDING})
    if len(types) != layers or unknown:
        what = f"names {join_words(unknown)}" if unknown else f"has {len(types)} entries for {layers} layers"
        raise UserError(
            f"{config.where('layer_types')} {what}; full_attention or sliding_attention is expected for each layer"
        )
    return types
