"""Bring a drafter that is a GGUF file already to what this fork and llama.cpp read, tensors untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dflash_tools.errors import UserError
from gguf import GGMLQuantizationType

from dflash_convert.check import check_target
from dflash_convert.drafter import Drafter
from dflash_convert.families.gguf_drafter import read_gguf_drafter
from dflash_convert.families.legacy_gguf import is_legacy
from dflash_convert.gguf_file import GgufFile, Metadata, read_gguf
from dflash_convert.taps import override_taps, parse_taps
from dflash_convert.target import Target
from dflash_convert.write import write_described

MAGIC = b"GGUF"
# Keys that make two tokenizers of one kind the same to a model.
_SAME = ("model", "tokens", "merges")
# As a share of all tokens: converters differ in how they fill the ids that nothing uses.
_FEW = 0.05


def is_gguf(path: Path) -> bool:
    """Whether `path` is a GGUF file, by its first bytes or, if it is too short for them, by its name."""
    if not path.is_file():
        return False
    with path.open("rb") as f:
        start = f.read(len(MAGIC))
    return start == MAGIC or (path.suffix == ".gguf" and len(start) < len(MAGIC))


def upgrade(
    path: Path,
    target: Target,
    tokenizer: Callable[[bool], Metadata],
    outfile: Path,
    *,
    taps: str | None = None,
    window: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Drafter, Path, int]:
    """Write `path` anew with all that can be put right; returns its description, the file and its size in bytes.

    `tokenizer(llama_rules)` gives the target's keys. What was changed stands in the description's notes; if nothing
    was, nothing is written and `path` itself is returned. `taps`: see `taps.parse_taps`; `window`: that of all layers
    but the last. Raises UserError as the readers do; nothing is written then.
    """
    file = read_gguf(path)
    wanted = parse_taps(taps) if taps is not None else None
    named = wanted if isinstance(wanted, tuple) else None
    drafter, changes = read_gguf_drafter(path, file, target, taps=named, window=window)
    if wanted is not None and (said := override_taps(drafter, wanted)):
        changes.append(said)
    _check_vocabulary(path, file, target)
    check_target(path, drafter, target)
    keys, change = _tokenizer(file, tokenizer(drafter.arch == "eagle3"))
    changes += change
    if (share := _other_tokens(file, keys)) > _FEW:
        drafter.warnings.append(
            f"{path}: {share:.0%} of its tokens are others than those of {target.path}, which take their place. Is the "
            "target the one this drafter was trained for?"
        )
    if not changes:
        drafter.notes.append("nothing to change: the file is as llama.cpp reads it, and nothing was written")
        return drafter, path, path.stat().st_size
    drafter.notes += [f"changed: {c}" for c in changes]
    if outfile.exists() and outfile.samefile(path):
        raise UserError(f"{outfile}: is the drafter itself; give another --outfile")
    size = write_described(drafter, _other_keys(file), keys, GGMLQuantizationType.F32, outfile, progress)
    return drafter, outfile, size


def _check_vocabulary(path: Path, file: GgufFile, target: Target) -> None:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    n = len(tokens.value) if tokens is not None and isinstance(tokens.value, list) else 0
    if n and target.vocab_size is not None and n != target.vocab_size:
        raise UserError(
            f"{path}: its tokenizer has {n} tokens, {target.path} has {target.vocab_size}. Is the target the one this "
            "drafter was trained for?"
        )


def _tokenizer(file: GgufFile, target: Metadata) -> tuple[Metadata, list[str]]:
    """The tokenizer to write. One that says the same as the target's is kept as it is in a file of llama.cpp's own."""
    own = {k: v for k, v in file.metadata.items() if k.startswith("tokenizer.") and v.value != []}
    own.pop("tokenizer.ggml.mask_token_id", None)
    what = {k for k in _SAME if _value(own, k) != _value(target, k)}
    if not own:
        return target, ["tokenizer: taken from the target, the file has none"]
    if what:
        return target, [f"tokenizer: the target's, from which the file's differs in {', '.join(sorted(what))}"]
    if is_legacy(file):
        differs = sorted(k for k in own.keys() | target.keys() if own.get(k) != target.get(k))
        return target, [f"tokenizer: the target's ({', '.join(differs)[:200]})"] if differs else []
    return own, []


def _other_tokens(file: GgufFile, target: Metadata) -> float:
    """The share of the file's tokens that differ from those of `target` in the same places."""
    own, other = (_value(keys, "tokens") for keys in (file.metadata, target))
    if not isinstance(own, list) or not isinstance(other, list) or not own:
        return 0.0
    return sum(a != b for a, b in zip(own, other, strict=False)) / len(own)


def _value(keys: Metadata, name: str) -> object:
    found = keys.get(f"tokenizer.ggml.{name}")
    return None if found is None else found.value


def _other_keys(file: GgufFile) -> Metadata:
    """All that is neither the architecture's nor the tokenizer's: name, authors, file type, calibration, ..."""
    arch = file.string("general.architecture") or ""
    written = ("general.architecture", "general.alignment")
    return {
        k: v
        for k, v in file.metadata.items()
        if k not in written and not k.startswith((f"{arch}.", "tokenizer.", "split.")) and v.value != []
    }
