"""A drafter that is a GGUF file already: read in any dialect, repaired where that is possible, and described.

What no key of llama.cpp's own converter says (one causality for each layer) is derived by the rule of the drafter's
authors where it is known which family this is, and only warned about where it is not.
"""

from __future__ import annotations

import re
from pathlib import Path

from dflash_tools.errors import UserError

from dflash_convert.check import check_tensors, shape_text
from dflash_convert.drafter import Drafter, OutTensor
from dflash_convert.families.block_attention import BlockAttention
from dflash_convert.families.dflash import scale_of_embeddings
from dflash_convert.families.legacy_gguf import GgufDrafter, below, is_legacy, stored, translate
from dflash_convert.gguf_file import GgufFile, Metadata, f32, flag, u32
from dflash_convert.gguf_keys import Keys
from dflash_convert.rope import Rope, sections_for_mrope
from dflash_convert.shape import LAYER_NAMES, MAX_DIM, MAX_LAYERS, Shape, layer_shapes
from dflash_convert.target import Target

_MASK_KEY = "mask_token_id"
_DEFAULT_BLOCK = 16


def read_gguf_drafter(
    path: Path, file: GgufFile, target: Target, *, taps: tuple[int, ...] | None = None, window: int | None = None
) -> tuple[Drafter, list[str]]:
    """The drafter in `file`, and what was translated or repaired, one clause each; an empty list: nothing.

    `taps`: the layers whose input is read, `window`: that of all layers but the last, if the user knows better than the
    file. Raises UserError for what is no drafter, cannot be repaired, or does not fit together.
    """
    arch = file.string("general.architecture") or ""
    if (parts := file.integer("split.count")) not in (None, 0, 1):
        raise UserError(f"{path}: one of {parts} parts; merge them with llama-gguf-split --merge first")
    legacy = is_legacy(file)
    if not legacy and arch not in ("dflash", "eagle3"):
        raise UserError(
            f"{path}: general.architecture is {arch or 'missing'}; drafters are dflash, eagle3, dflash-draft, "
            "qwen35-dflash-draft and gemma4-dflash-draft"
        )
    found = translate(path, file, target, taps) if legacy else _as_it_is(path, file, arch, taps)
    if taps is not None and taps != found.taps:
        _check_count(found, taps)
        found.changes.append(f"--taps: the inputs of layers {list(taps)} instead of {list(found.taps)}")
        found.taps = taps
    keys = found.reader()
    if found.arch == "eagle3" and window is not None:
        raise UserError(f"{path}: --sliding-window: llama.cpp's EAGLE3 has no window")
    if found.arch == "dflash":
        _repair_windows(found, keys, window)
        _repair_causality(found, keys, legacy)
        _repair_vocabulary_weights(found)
        _repair_embedding_scale(found, keys, target)
        if target.mrope and not keys.has("rope.dimension_sections"):
            found.keys |= sections_for_mrope(_shape(keys).head_dim)
            found.changes.append("rope.dimension_sections added: the target has several rope axes (M-RoPE)")
    else:
        _repair_norm_before_fc(found, keys)
    _warn(found, file, target, legacy)
    drafter = _describe(found, keys, target)
    n = target.n_layers or 0
    if found.arch == "eagle3" and taps is None and found.taps == (2, n // 2, n - 3):
        drafter.notes.append(
            f"taps {list(found.taps)} are the usual ones for {n} layers, which llama.cpp's converter also writes where "
            "the config names others in eagle_config: if few drafts are accepted, look there and give --taps"
        )
    if legacy:
        _check_tensors(found, _shape(keys), drafter.target_hidden_size)
    return drafter, found.changes


def _as_it_is(path: Path, file: GgufFile, arch: str, named: tuple[int, ...] | None) -> GgufDrafter:
    keys = below(file.metadata, arch)
    reader = Keys(path, f"{arch}.", keys)
    ids = reader.integers("target_layers", most=4096)
    if not ids and not named:
        raise UserError(
            f"{reader.where('target_layers')} is missing: which layers of the target the drafter reads cannot be "
            "guessed. Give them with --taps, or convert its original checkpoint."
        )
    changes: list[str] = []
    mask = _mask_token(path, file, keys, changes) if arch == "dflash" else None
    keys.pop("target_layers", None)
    tensors = {n: stored(path, n, e) for n, e in file.tensors.items()}
    vocab = reader.optional_integer("vocab_size")
    drafter = GgufDrafter(path, arch, arch, keys, ids, ids, mask, vocab, tensors, changes)
    if not ids:
        drafter.taps = named or ()
        drafter.changes.append(f"--taps: the inputs of layers {list(drafter.taps)}, the file names none")
    return drafter


def _mask_token(path: Path, file: GgufFile, keys: Metadata, changes: list[str]) -> int:
    """The mask token, which some files have under the architecture's prefix; there it is taken out of `keys`."""
    tokenizer = Keys(path, "tokenizer.ggml.", below(file.metadata, "tokenizer.ggml"))
    mask = tokenizer.optional_integer(_MASK_KEY, most=2**32 - 1)
    misplaced = Keys(path, "dflash.", keys).optional_integer(_MASK_KEY)
    keys.pop(_MASK_KEY, None)
    if mask in (None, 2**32 - 1):  # -1
        if misplaced is None:
            raise UserError(
                f"{path}: tokenizer.ggml.{_MASK_KEY} is missing: without the token that fills the block the drafter "
                "cannot run. Convert its original checkpoint instead."
            )
        changes.append(f"mask token {misplaced}: dflash.{_MASK_KEY} -> tokenizer.ggml.{_MASK_KEY}")
        return misplaced
    return int(mask or 0)


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
    found.keys |= BlockAttention(sliding, (False,) * layers, stated).keys()


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


def _warn(found: GgufDrafter, file: GgufFile, target: Target, legacy: bool) -> None:
    name = f"{found.path.name} {file.string('general.name') or ''}"
    if re.search(r"dflash[-_ ]?2", name, re.IGNORECASE) and "selector_hidden.weight" not in found.tensors:
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
    n, k = target.n_layers, len(found.taps)
    if not legacy and found.arch == "dflash" and n and k > 2 and found.taps == found.ids:
        usual = tuple(round(1 + i * (n - 4) / (k - 1)) for i in range(k))
        if found.taps == usual:
            found.warnings.append(
                f"{found.path}: target_layers {list(usual)} are the layers whose *output* z-lab's drafters usually "
                "read; as inputs they would be one more. If few drafts are accepted, try --taps outputs"
            )


def _check_count(found: GgufDrafter, taps: tuple[int, ...]) -> None:
    if len(taps) != len(found.taps):
        raise UserError(f"--taps names {len(taps)} layers; {found.path} reads {len(found.taps)}, {list(found.taps)}")


def _shape(keys: Keys) -> Shape:
    hidden = keys.integer("embedding_length", least=1, most=MAX_DIM)
    heads = keys.integer("attention.head_count", least=1, most=MAX_DIM)
    kv_heads = keys.optional_integer("attention.head_count_kv", least=1, most=MAX_DIM) or heads
    stated = keys.optional_integer("attention.key_length", least=1, most=MAX_DIM)
    if heads % kv_heads or (stated is None and hidden % heads):
        raise UserError(f"{keys.where('attention.head_count')}: {heads} heads, {kv_heads} of keys, width {hidden}")
    return Shape(
        layers=keys.integer("block_count", least=1, most=MAX_LAYERS),
        hidden=hidden,
        feed_forward=keys.integer("feed_forward_length", least=1, most=MAX_DIM),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=stated or hidden // heads,
        head_dim_stated=stated is not None,
        rms_eps=keys.number("attention.layer_norm_rms_epsilon"),
        vocab=0,
        context=keys.optional_integer("context_length"),
    )


def _describe(found: GgufDrafter, keys: Keys, target: Target) -> Drafter:
    shape = _shape(keys)
    width = _tap_width(found, keys, shape, target)
    family, block = "EAGLE3", None
    if found.arch == "dflash":
        block = keys.optional_integer("block_size", least=2, most=1024)
        if block is None:
            block = _DEFAULT_BLOCK
            found.keys["block_size"] = u32(block)
            found.changes.append(f"block_size added: {block}, which all engines take where it is missing")
        family = "DFlash2" if "selector_hidden.weight" in found.tensors else "DFlash"
        family = "DSpark" if "markov_w1.weight" in found.tensors else family
    d2t = found.tensors.get("d2t")
    return Drafter(
        family=family,
        arch=found.arch,
        switch="--eagle3" if found.arch == "eagle3" else "--dflash",
        block_count=shape.layers,
        hidden_size=shape.hidden,
        target_hidden_size=width,
        feed_forward_size=shape.feed_forward,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        head_dim_stated=False,  # like all keys, those of the head stand in `extra` as they are
        rms_eps=shape.rms_eps,
        vocab_size=found.vocab or target.vocab_size or 0,
        context_length=None,
        rope=Rope(theta=None),
        taps=found.taps,
        tap_ids=found.ids,
        tensors=[OutTensor(name, tensor) for name, tensor in found.tensors.items()],
        mask_token_id=found.mask_token,
        block_size=block,
        draft_vocab_size=d2t.shape[0] if d2t is not None and d2t.shape else None,
        extra=found.keys,
        warnings=found.warnings,
    )


def _tap_width(found: GgufDrafter, keys: Keys, shape: Shape, target: Target) -> int:
    """The width of one tapped layer. Raises UserError if `fc` is not made for that many of them, or another target."""
    width = keys.optional_integer("target_hidden_size", least=1) or target.hidden_size or shape.hidden
    fc, n = found.tensors.get("fc.weight"), len(found.taps)
    if fc is None or fc.shape != (shape.hidden, n * width):
        raise UserError(
            f"{found.path}: fc.weight is {'missing' if fc is None else shape_text(fc.shape)}; {n} tapped layers of a "
            f"target with hidden size {width} need {shape_text((shape.hidden, n * width))}. Is {target.path} the "
            "target this drafter was trained for?"
        )
    return width


def _check_tensors(found: GgufDrafter, shape: Shape, target_hidden: int) -> None:
    """That everything the graph needs is there in its shape, and nothing that it would leave out."""
    layer = dict(layer_shapes(shape, shape.hidden)) | {f"self_attn.{n}_norm.weight": (shape.head_dim,) for n in "qk"}
    required = {
        "fc.weight": (shape.hidden, len(found.taps) * target_hidden),
        "enc.output_norm.weight": (shape.hidden,),
        "output_norm.weight": (shape.hidden,),
    }
    required |= {f"blk.{i}.{LAYER_NAMES[n]}": s for i in range(shape.layers) for n, s in layer.items()}
    free = re.compile(r"(token_embd|output|markov_w[12]|conf_proj|selector_\w+|rope_freqs)\.(weight|bias)"
                      r"|blk\.\d+\.(attn|ffn)_conv_(base|proj\.weight)|blk\.\d+\.attn_sinks\.weight|d2t")  # fmt: skip
    unchecked = [n for n in found.tensors if free.fullmatch(n)]
    check_tensors(found.path, found.tensors, required, {}, unchecked, of_gguf=True)
