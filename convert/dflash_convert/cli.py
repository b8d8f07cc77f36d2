"""`convert-dflash`: a drafter checkpoint and its target in, a GGUF for llama.cpp out."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dflash_tools.errors import UserError, run_cli

from dflash_convert.check import check_target
from dflash_convert.checkpoint import Checkpoint, open_checkpoint
from dflash_convert.drafter import Drafter
from dflash_convert.families import KNOWN, read_drafter
from dflash_convert.quantize import OUTTYPES
from dflash_convert.taps import override_taps, parse_taps
from dflash_convert.target import Target, read_target
from dflash_convert.tokenizer import tokenizer_keys
from dflash_convert.write import write_drafter

PROG = "convert-dflash"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status (0 done, 1 a mistake that the user can put right, 130 interrupted)."""
    args = _parser().parse_args(argv)
    return run_cli(PROG, lambda: _run(args))


def convert(
    drafter: Path,
    target: Path,
    outfile: Path | None = None,
    outtype: str | None = None,
    *,
    taps: str | None = None,
    llama_cpp: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Drafter, Path, int]:
    """Convert one drafter. Returns its description, the file written and its size in bytes.

    `outtype` by default is that of the weights (bf16 for bf16, otherwise f16), `outfile` by default
    `<name of the drafter>-<OUTTYPE>.gguf` in the current directory. `taps`: see `taps.parse_taps`. `llama_cpp`:
    source tree whose converter exports the tokenizer of an HF target, by default the pinned one. Raises UserError;
    nothing is written then.
    """
    try:
        return _convert(drafter, target, outfile, outtype, taps, llama_cpp, progress)
    except OSError as e:  # a folder that may not be read, a name that is too long, ...
        raise UserError(f"{e.filename or drafter}: {e.strerror or e}") from e


def _convert(
    drafter: Path,
    target: Path,
    outfile: Path | None,
    outtype: str | None,
    taps: str | None,
    llama_cpp: Path | None,
    progress: Callable[[int, int], None],
) -> tuple[Drafter, Path, int]:
    checkpoint = open_checkpoint(drafter)
    described_target = read_target(target)
    description = read_drafter(checkpoint, described_target)
    if taps is not None:
        override_taps(description, parse_taps(taps))
    check_target(checkpoint.config.path, description, described_target)
    _note_scaled_embeddings(description, described_target)
    outtype = outtype or _default_outtype(checkpoint)
    outfile = outfile or Path(f"{_name(drafter, checkpoint)}-{outtype.upper()}.gguf")
    _refuse_overwriting_inputs(outfile, checkpoint, described_target)
    keys = tokenizer_keys(described_target, llama_rules=description.arch == "eagle3", llama_cpp=llama_cpp)
    size = write_drafter(description, checkpoint.directory, keys, outtype, outfile, progress)
    return description, outfile, size


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Convert a Hugging Face drafter for speculative decoding to GGUF, with its target's metadata.",
        epilog="Known families: " + "; ".join(KNOWN) + ".",
    )
    parser.add_argument(
        "drafter", type=Path, metavar="DRAFTER", help="directory with config.json and weights, or a weights file in one"
    )
    parser.add_argument(
        "--target-model-dir",
        type=Path,
        required=True,
        metavar="TARGET",
        help="the model it drafts for: HF directory (config and tokenizer files suffice) or .gguf",
    )
    parser.add_argument("--outfile", type=Path, metavar="FILE", help="default: <drafter>-<OUTTYPE>.gguf, here")
    parser.add_argument("--outtype", choices=list(OUTTYPES), help="type of the matrices; default: that of the weights")
    parser.add_argument(
        "--taps",
        metavar="WHICH",
        help="layers of the target that are read, if the file is known to be wrong: inputs or outputs (how its ids are "
        "meant), or the layers whose input is read, such as 2,18,33",
    )
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    return parser


def _run(args: argparse.Namespace) -> int:
    with _stop_on_signals():
        show = _progress_line() if sys.stderr.isatty() else lambda done, total: None
        drafter, outfile, size = convert(
            args.drafter, args.target_model_dir, args.outfile, args.outtype, taps=args.taps, progress=show
        )
    for warning in drafter.warnings:
        print(f"{PROG}: warning: {warning}", file=sys.stderr)
    print(_summary(drafter, args.target_model_dir, outfile, size))
    return 0


def _summary(drafter: Drafter, target: Path, outfile: Path, size: int) -> str:
    vocabulary = f"{drafter.vocab_size} tokens"
    if drafter.draft_vocab_size not in (None, drafter.vocab_size):
        vocabulary += f", {drafter.draft_vocab_size} of them drafted"
    lines = {
        "family": drafter.family,
        "layers": f"{drafter.block_count} of width {drafter.hidden_size}",
        "block": f"{drafter.block_size} tokens, anchor included" if drafter.block_size else None,
        "taps": f"inputs of target layers {', '.join(map(str, drafter.taps))}",
        "mask token": drafter.mask_token_id,
        "vocabulary": vocabulary,
        "tensors": len(drafter.tensors),
        "file": f"{outfile}, {size / 1e6:.1f} MB",
    }
    text = [f"{name + ':':<12}{value}" for name, value in lines.items() if value is not None]
    text += [f"note: {note}" for note in drafter.notes]
    served = target if target.suffix == ".gguf" else "TARGET.gguf"
    return "\n".join([*text, f"serve it:   llama-server -m {served} -md {outfile} {drafter.switch}"])


def _default_outtype(checkpoint: Checkpoint) -> str:
    """As llama.cpp's `auto`: the first matrix of a 16-bit float type decides, f16 if there is none."""
    matrices = (t.dtype for t in checkpoint.tensors.values() if len(t.shape) >= 2)
    return next((d.lower() for d in matrices if d in ("BF16", "F16")), "f16")


def _name(path: Path, checkpoint: Checkpoint) -> str:
    generic = re.match(r"(model|pytorch_model)\b", path.name)
    name = path.stem if path.is_file() and not generic else checkpoint.directory.name
    return name or "drafter"


def _refuse_overwriting_inputs(outfile: Path, checkpoint: Checkpoint, target: Target) -> None:
    if not outfile.exists():
        return
    for source in (*checkpoint.files, checkpoint.config.path, target.path):
        if outfile.samefile(source):
            raise UserError(f"{outfile}: is one of the inputs; give another --outfile")


def _note_scaled_embeddings(drafter: Drafter, target: Target) -> None:
    scale = target.embedding_scale
    if drafter.arch == "dflash" and scale not in (None, 1.0) and "embedding_scale" not in drafter.extra:
        drafter.warnings.append(
            f"{target.path} scales its embeddings by {scale:g}; the drafter's config has no input_embedding_scale, so "
            "the drafter reads them unscaled"
        )


def _progress_line() -> Callable[[int, int], None]:
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(1, total)
        if percent != shown:
            shown = percent
            end = "\n" if done == total else ""
            print(f"\r{PROG}: {percent:3d} % of {total / 1e6:.0f} MB", end=end, file=sys.stderr)

    return show


@contextmanager
def _stop_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the conversion as Ctrl-C does, so that nothing half-written stays."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {}
    try:
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            before[number] = signal.signal(number, stop)
    except ValueError:
        pass  # not the main thread
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
