"""`convert-dflash`: drafter checkpoints and their target in, GGUF files for llama.cpp out."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dflash_tools.errors import UserError, printable, run_cli

from dflash_convert.conversion import LoadedTarget, convert
from dflash_convert.drafter import Drafter
from dflash_convert.families import KNOWN
from dflash_convert.hub import find_drafter, find_target
from dflash_convert.inspection import Oddity, Report, inspect
from dflash_convert.quantiser import QUANTISED
from dflash_convert.quantize import OUTTYPES

PROG = "convert-dflash"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status (0 done, 1 a mistake that the user can put right, 130 interrupted)."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.outfile and (args.outdir or len(args.drafters) > 1):
        parser.error("--outfile names the file of one drafter; give --outdir for several, and not both")
    if not args.target_model_dir and not args.check:
        parser.error("--target-model-dir is missing: the model that the drafter drafts for")
    return run_cli(PROG, lambda: _check(args) if args.check else _run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Convert Hugging Face drafters for speculative decoding to GGUF, with their target's metadata.",
        epilog="Known families: " + "; ".join(KNOWN) + ".",
    )
    parser.add_argument(
        "drafters",
        nargs="+",
        metavar="DRAFTER",
        help="directory with config.json and weights, a weights file in one, a Hub id (ORG/NAME, or "
        "ORG/NAME/FOLDER), or a drafter's .gguf to upgrade; several share one target",
    )
    parser.add_argument(
        "--target-model-dir",
        "--target",
        metavar="TARGET",
        help="the model they draft for: HF directory (config and tokenizer files suffice), Hub id (its weights are not "
        "fetched) or .gguf",
    )
    parser.add_argument("--outfile", type=Path, metavar="FILE", help="default: <drafter>-<OUTTYPE>.gguf, here")
    parser.add_argument("--outdir", type=Path, metavar="DIR", help="where files with their default names go")
    parser.add_argument(
        "--outtype",
        choices=[*OUTTYPES, *QUANTISED],
        type=str.lower,
        metavar="TYPE",
        help=f"type of the matrices: {', '.join(OUTTYPES)} (default: that of the weights), or by the built fork's "
        f"quantiser {', '.join(QUANTISED)}",
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of drafters given as Hub ids")
    parser.add_argument("--target-revision", metavar="REV", help="the same of the target")
    parser.add_argument(
        "--taps",
        metavar="WHICH",
        help="layers of the target that are read, if the file is known to be wrong: inputs or outputs (how its ids are "
        "meant), or the layers whose input is read, such as 2,18,33",
    )
    parser.add_argument(
        "--sliding-window",
        type=int,
        metavar="N",
        help="of an old GGUF drafter that does not say it: the window of all layers but the last",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing: say what each DRAFTER (a checkpoint or a .gguf) holds, what it expects of its target, and "
        "what is odd; held against TARGET if that is given. Exit status 1 if something is wrong",
    )
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    return parser


def _run(args: argparse.Namespace) -> int:
    with _stop_on_signals():
        target = LoadedTarget(find_target(args.target_model_dir, args.target_revision))
        made: list[Path] = []
        for drafter in args.drafters:
            try:
                made.append(_convert_one(drafter, target, made, args))
            except UserError as e:
                if len(args.drafters) == 1 or args.debug:
                    raise
                print(printable(f"{PROG}: {drafter} is not converted: {e}"), file=sys.stderr)
    return int(len(made) < len(args.drafters))


def _check(args: argparse.Namespace) -> int:
    where = args.target_model_dir
    target = LoadedTarget(find_target(where, args.target_revision)) if where else None
    reports = [_report(drafter, target, args.revision) for drafter in args.drafters]
    print("\n\n".join(map(str, reports)))
    return int(not all(report.good for report in reports))


def _report(drafter: str, target: LoadedTarget | None, revision: str | None) -> Report:
    """What there is to say of one drafter, also if it cannot be had: that takes nothing from the others."""
    try:
        path = find_drafter(drafter, revision)
    except UserError as e:
        return Report(Path(drafter), oddities=[Oddity(str(e), "give a drafter that can be read")])
    return inspect(path, target)


def _convert_one(drafter: str, target: LoadedTarget, made: list[Path], args: argparse.Namespace) -> Path:
    """Convert `drafter` and say what came out; `made` are the files of those before it."""
    path = find_drafter(drafter, args.revision)
    then = f"; now llama-quantize to {args.outtype}" if args.outtype in QUANTISED else ""
    show = _progress_line(then) if sys.stderr.isatty() else lambda done, total: None
    description, outfile, size = convert(
        path,
        target,
        args.outfile,
        args.outtype,
        outdir=args.outdir,
        taps=args.taps,
        window=args.sliding_window,
        keep=made,
        progress=show,
    )
    for warning in description.warnings:
        print(printable(f"{PROG}: warning: {warning}"), file=sys.stderr)
    if made:
        print()
    print(printable(_summary(description, target.target.path, outfile, size)), flush=True)
    return outfile


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


def _progress_line(then: str) -> Callable[[int, int], None]:
    """Shows how far it is, and at the end `then`."""
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(1, total)
        if percent != shown:
            shown = percent
            end = f"{then}\n" if done == total else ""
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
