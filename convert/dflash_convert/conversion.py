"""Convert one drafter, given the target it drafts for: the steps from checkpoint to file."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from dflash_tools.errors import UserError

from dflash_convert.check import check_target
from dflash_convert.checkpoint import Checkpoint, open_checkpoint
from dflash_convert.drafter import Drafter
from dflash_convert.families import read_drafter
from dflash_convert.gguf_file import Metadata
from dflash_convert.quantiser import QUANTISED, plain_type, write_quantised
from dflash_convert.taps import override_taps, parse_taps
from dflash_convert.target import Target, read_target
from dflash_convert.tokenizer import tokenizer_keys
from dflash_convert.upgrade import is_gguf, upgrade
from dflash_convert.write import check_place, write_drafter

Progress = Callable[[int, int], None]


class LoadedTarget:
    """A target that is read once, and its tokenizer exported once for each kind of drafter that asks for it.

    `llama_cpp`: source tree whose converter exports the tokenizer of an HF target, by default the pinned one. Raises
    UserError if there is no target at `path`.
    """

    def __init__(self, path: Path, llama_cpp: Path | None = None) -> None:
        try:
            self.target: Target = read_target(path)
        except OSError as e:
            raise UserError(f"{e.filename or path}: {e.strerror or e}") from e
        self._llama_cpp = llama_cpp
        self._tokenizers: dict[bool, Metadata] = {}

    def tokenizer(self, *, llama_rules: bool) -> Metadata:
        """Its `tokenizer.*` keys; `llama_rules` as in `upstream.export_tokenizer`."""
        if llama_rules not in self._tokenizers:
            keys = tokenizer_keys(self.target, llama_rules=llama_rules, llama_cpp=self._llama_cpp)
            self._tokenizers[llama_rules] = keys
        return self._tokenizers[llama_rules]


def convert(
    drafter: Path,
    target: Path | LoadedTarget,
    outfile: Path | None = None,
    outtype: str | None = None,
    *,
    outdir: Path | None = None,
    taps: str | None = None,
    window: int | None = None,
    keep: Collection[Path] = (),
    llama_cpp: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[Drafter, Path, int]:
    """Convert one drafter. Returns its description, the file written and its size in bytes.

    `outtype` by default is that of the weights (bf16 for bf16, otherwise f16), `outfile` by default
    `<name of the drafter>-<OUTTYPE>.gguf` in `outdir`, by default the current directory. `keep`: files that must not
    be written over, as the inputs. `taps`: see `taps.parse_taps`. `llama_cpp`: see LoadedTarget. A drafter that is a
    GGUF file already is upgraded, see `upgrade.upgrade` (and for `window`). Raises UserError; nothing is written then.
    """
    try:
        loaded = target if isinstance(target, LoadedTarget) else LoadedTarget(target, llama_cpp)
        if is_gguf(drafter):
            return _upgrade(drafter, loaded, outfile, outtype, outdir, taps, window, keep, progress)
        if window is not None:
            raise UserError(f"{drafter}: --sliding-window is for drafters that are GGUF; config.json says it of others")
        checkpoint = open_checkpoint(drafter)
        description = read_drafter(checkpoint, loaded.target)
        if taps is not None and (said := override_taps(description, parse_taps(taps))):
            description.notes.append(said)
        check_target(checkpoint.config.path, description, loaded.target)
        _note_scaled_embeddings(description, loaded.target)
        outtype = outtype or _default_outtype(checkpoint)
        outfile = outfile or (outdir or Path()) / f"{_name(drafter, checkpoint)}-{outtype.upper()}.gguf"
        _check_outfile(outfile, (*checkpoint.files, checkpoint.config.path, loaded.target.path), keep)
        keys = loaded.tokenizer(llama_rules=description.arch == "eagle3")
        write = partial(write_drafter, description, checkpoint.directory, keys, progress=progress)
        if outtype in QUANTISED:
            size, types = write_quantised(write, plain_type(checkpoint), outtype, outfile)
            description.notes.append(types)
        else:
            size = write(outtype, outfile)
    except OSError as e:  # a folder that may not be read, a name that is too long, ...
        raise UserError(f"{e.filename or drafter}: {e.strerror or e}") from e
    return description, outfile, size


def _upgrade(
    drafter: Path,
    target: LoadedTarget,
    outfile: Path | None,
    outtype: str | None,
    outdir: Path | None,
    taps: str | None,
    window: int | None,
    keep: Collection[Path],
    progress: Progress,
) -> tuple[Drafter, Path, int]:
    if outtype is not None:
        raise UserError(f"{drafter}: --outtype: the tensors of a GGUF drafter are copied as they are; leave it out")
    outfile = outfile or (outdir or Path()) / f"{drafter.stem}-upgraded.gguf"
    _check_outfile(outfile, (drafter, target.target.path), keep)
    return upgrade(
        drafter,
        target.target,
        lambda llama_rules: target.tokenizer(llama_rules=llama_rules),
        outfile,
        taps=taps,
        window=window,
        progress=progress,
    )


def _default_outtype(checkpoint: Checkpoint) -> str:
    """As llama.cpp's `auto`: the first matrix of a 16-bit float type decides, f16 if there is none."""
    matrices = (t.dtype for t in checkpoint.tensors.values() if len(t.shape) >= 2)
    return next((d.lower() for d in matrices if d in ("BF16", "F16")), "f16")


def _name(path: Path, checkpoint: Checkpoint) -> str:
    generic = re.match(r"(model|pytorch_model)\b", path.name)
    name = path.stem if path.is_file() and not generic else checkpoint.name
    return name or "drafter"


def _check_outfile(outfile: Path, inputs: Collection[Path], keep: Collection[Path]) -> None:
    """Before anything takes time: that a file can be at `outfile`, and that it is none that must stay."""
    check_place(outfile)
    if not outfile.exists():
        return
    if any(outfile.samefile(p) for p in inputs):
        raise UserError(f"{outfile}: is one of the inputs; give another --outfile")
    if any(outfile.samefile(p) for p in keep):
        raise UserError(f"{outfile}: another drafter of this call was just written there; convert this one by itself")


def _note_scaled_embeddings(drafter: Drafter, target: Target) -> None:
    scale = target.embedding_scale
    if drafter.arch == "dflash" and scale not in (None, 1.0) and "embedding_scale" not in drafter.extra:
        drafter.warnings.append(
            f"{target.path} scales its embeddings by {scale:g}; the drafter's config has no input_embedding_scale, so "
            "the drafter reads them unscaled"
        )
