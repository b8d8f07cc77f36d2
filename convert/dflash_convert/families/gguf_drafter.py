"""A drafter that is a GGUF file already: read in any dialect, repaired where that is possible, and described."""

from __future__ import annotations

import re
from pathlib import Path

from dflash_tools.errors import UserError

from dflash_convert.check import check_tensors, shape_text
from dflash_convert.drafter import Drafter, OutTensor
from dflash_convert.families.gguf_repair import repair, warn
from dflash_convert.families.legacy_gguf import GgufDrafter, below, is_legacy, stored, translate
from dflash_convert.gguf_file import GgufFile, Metadata, u32
from dflash_convert.gguf_keys import Keys
from dflash_convert.rope import Rope
from dflash_convert.shape import LAYER_NAMES, Shape, layer_shapes
from dflash_convert.target import Target

_MASK_KEY = "mask_token_id"
_DEFAULT_BLOCK = 16


def read_gguf_drafter(
    path: Path, file: GgufFile, target: Target, *, taps: tuple[int, ...] | None = None, window: int | None = None
) -> tuple[Drafter, list[str]]:
    """The drafter in `file`, and what was translated or repaired, one clause each; an empty list: nothing.

    `taps`: the layers whose input is read, for a file that names none; `window`: that of all layers but the last, if
    the user knows better than the file. Raises UserError for what is no drafter, cannot be repaired, or does not fit
    together.
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
    repair(found, target, window, legacy=legacy)
    warn(found, file.string("general.name") or "", target, legacy=legacy)
    drafter = _describe(found, target)
    if legacy:
        _check_tensors(found, drafter.target_hidden_size)
    n = target.n_layers or 0
    if found.arch == "eagle3" and taps is None and found.taps == (2, n // 2, n - 3):
        drafter.notes.append(
            f"taps {list(found.taps)} are the usual ones for {n} layers, which llama.cpp's converter also writes where "
            "the config names others in eagle_config: if few drafts are accepted, look there and give --taps"
        )
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


def _describe(found: GgufDrafter, target: Target) -> Drafter:
    keys, shape = found.reader(), found.shape()
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


def _check_tensors(found: GgufDrafter, target_hidden: int) -> None:
    """That everything the graph needs is there in its shape, and nothing that it would leave out."""
    shape = found.shape()
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
