"""What can be put right in a drafter's GGUF keys, and what can only be warned about.

What no key of llama.cpp's own converter says (one causality for each layer) is derived by the rule of the drafter's
authors where it is known which family this is.
"""

from __future__ import annotations

import math
import re

from dflash_tools.errors import UserError, join_words

from dflash_convert.families.block_attention import BlockAttention
from dflash_convert.families.dflash import scale_of_embeddings
from dflash_convert.families.legacy_gguf import GgufDrafter
from dflash_convert.gguf_file import f32, flag, flag_array, u32
from dflash_convert.gguf_keys import Keys
from dflash_convert.rope import sections_for_mrope
from dflash_convert.shape import MAX_DIM, MAX_LAYERS
from dflash_convert.target import Target

_SCALING = "rope.scaling."
_USUAL_YARN = {"yarn_ext_factor": 1.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0}


def repair(found: GgufDrafter, target: Target, window: int | None, *, legacy: bool) -> None:
    """Change `found.keys` and `found.tensors` where that is right for certain, each time with a clause in its changes.

    `window`: that of all layers but the last, if the user gives one; `legacy`: the file was of an older dialect. Raises
    UserError for keys that make no sense.
    """
    keys = found.reader()
    if found.arch == "eagle3":
        if window is not None:
            raise UserError(f"{found.path}: --sliding-window: llama.cpp's EAGLE3 has no window")
        _repair_norm_before_fc(found, keys)
        return
    _repair_windows(found, keys, window)
    _repair_causality(found, keys, legacy)
    _repair_vocabulary_weights(found)
    _repair_embedding_scale(found, keys, target)
    if target.mrope and not keys.has("rope.dimension_sections"):
        found.keys |= sections_for_mrope(found.shape().head_dim)
        found.changes.append("rope.dimension_sections added: the target has several rope axes (M-RoPE)")


def _repair_windows(found: GgufDrafter, keys: Keys, window: int | None) -> None:
    """A window needs the layers that have it, and some layer to have it: llama.cpp aborts otherwise."""
    layers = keys.integer("block_count", least=1, most=MAX_LAYERS)
    stated = keys.optional_integer("attention.sliding_window")
    if window is not None and not 1 <= window <= MAX_DIM:
        raise UserError(f"--sliding-window is {window}; a number of positions is expected, such as 2048")
    if window is not None and window != stated:
        found.keys["attention.sliding_window"] = u32(window)
        found.keys.pop("attention.sliding_window_pattern", None)
        found.changes.append(f"--sliding-window: {window} instead of {stated or 'none'}")
        stated = window
    has_pattern = keys.has("attention.sliding_window_pattern")
    sliding = keys.flags("attention.sliding_window_pattern", layers) if has_pattern else ()
    if stated and not has_pattern:
        sliding = tuple(i < layers - 1 or layers == 1 for i in range(layers))
        found.changes.append(
            f"window of {stated}: the file does not say of which layers; of all but the last, as in every published "
            "drafter that has one"
        )
    if not stated or not any(sliding):
        gone = [k for k in ("attention.sliding_window", "attention.sliding_window_pattern") if found.keys.pop(k, None)]
        if gone and (stated or any(sliding)):
            found.changes.append(f"left out: {' and '.join(gone)}, as no layer has a window")
        return
    found.keys["attention.sliding_window_pattern"] = flag_array(list(sliding))


def _repair_causality(found: GgufDrafter, keys: Keys, legacy: bool) -> None:
    """Files say one causality for all layers or none.

    None is written by llama.cpp's converter if a z-lab config says none, which means sliding layers causal and full
    ones bidirectional; so it does in the older dialects, whose flag says false whatever the layers are. For DSpark, and
    where all layers slide, a missing key has other reasons too.
    """
    layers = keys.integer("block_count", least=1, most=MAX_LAYERS)
    if not keys.has("attention.sliding_window_pattern") or any(
        keys.has(k) for k in ("attention.causal", "attention.causal_pattern")
    ):
        return
    sliding = keys.flags("attention.sliding_window_pattern", layers)
    rule = "sliding layers causal, full ones bidirectional, as its authors mean a file that says nothing"
    if legacy or (not all(sliding) and "markov_w1.weight" not in found.tensors):
        attention = BlockAttention(sliding, sliding, keys.integer("attention.sliding_window"))
        found.keys |= attention.keys()
        found.changes.append(f"causality inside a block: {rule}")
    else:
        found.warnings.append(
            f"{found.path}: layers slide and the file does not say whether they are causal inside a block; llama.cpp "
            "takes all as bidirectional. Only the config of the original checkpoint tells: convert that one"
        )


def _repair_vocabulary_weights(found: GgufDrafter) -> None:
    if "token_embd.weight" in found.tensors and "output.weight" not in found.tensors:
        del found.tensors["token_embd.weight"]
        found.changes.append("token_embd.weight left out: llama.cpp would use it as head too; both are the target's")


def _repair_embedding_scale(found: GgufDrafter, keys: Keys, target: Target) -> None:
    """z-lab's drafters of Gemma read scaled embeddings, and no converter but this one says so."""
    scale = scale_of_embeddings(target, keys.integer("embedding_length", least=1, most=MAX_DIM))
    own = {"token_embd.weight", "markov_w1.weight"} & found.tensors.keys()
    if scale and not own and not keys.has("embedding_scale"):
        found.keys["embedding_scale"] = f32(scale)
        found.changes.append(f"embedding_scale {scale:.4g} added: {target.architecture} scales its embeddings so")


def _repair_norm_before_fc(found: GgufDrafter, keys: Keys) -> None:
    """llama.cpp's converter passes over the flag in `eagle_config`; llama.cpp refuses a norm it does not expect."""
    if "enc.output_norm.weight" in found.tensors and not keys.flag("norm_before_fc", False):
        found.keys["norm_before_fc"] = flag(True)
        found.changes.append("norm_before_fc: false -> true, as the norm itself is in the file")


def _unread_yarn(found: GgufDrafter) -> list[str]:
    """Keys of yarn that say something else than what llama.cpp does without them."""
    value = {k.removeprefix(_SCALING): v.value for k, v in found.keys.items() if k.startswith(_SCALING)}
    if value.get("type") != b"yarn" or not isinstance(value.get("factor"), float):
        return []
    usual = {**_USUAL_YARN, "yarn_attn_factor": 1 + math.log(max(1.0, value["factor"])) / 10}
    stated = {k: value[k] for k in usual if isinstance(value.get(k), float)}
    return [_SCALING + k for k, v in stated.items() if not math.isclose(v, usual[k], rel_tol=1e-5)]


def warn(found: GgufDrafter, name: str, target: Target, *, legacy: bool) -> None:
    """Say what looks wrong and cannot be known; `name` is the one that the file gives itself."""
    named = re.search(r"dflash[-_ ]?2", f"{found.path.name} {name}", re.IGNORECASE)
    if named and "selector_hidden.weight" not in found.tensors:
        found.warnings.append(
            f"{found.path}: named as DFlash2, but without its convolutions and selector, which one old converter "
            "drops: few drafts will be accepted. Convert the original checkpoint"
        )
    if legacy and "attention.sliding_window" not in found.keys:
        found.warnings.append(
            f"{found.path}: no window is stated, so all layers see everything. The drafters published for Qwen3.6 and "
            "Gemma 4 slide in all layers but the last, and old converters dropped it: if this is one of them, give "
            "--sliding-window 2048"
        )
    if unread := _unread_yarn(found):
        found.warnings.append(
            f"{found.path}: {join_words(unread)}: llama.cpp's drafters read no such key, so another yarn runs than "
            "the drafter was trained with. Convert the original checkpoint"
        )
    n, k = target.n_layers, len(found.taps)
    if not legacy and found.arch == "dflash" and n and k > 2 and found.taps == found.ids:
        usual = tuple(round(1 + i * (n - 4) / (k - 1)) for i in range(k))
        if found.taps == usual:
            found.warnings.append(
                f"{found.path}: target_layers {list(usual)} are the layers whose *output* z-lab's drafters usually "
                "read; as inputs they would be one more. If few drafts are accepted, try --taps outputs"
            )
