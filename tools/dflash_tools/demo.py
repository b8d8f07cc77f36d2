"""`python -m dflash_tools.demo`: the whole way on the tiny pairs, from checkpoint to equal text in fewer steps.

Converts the pairs of `models/tiny/`, starts `llama-server` with and without the drafter, sends the same requests to
both and shows what came back. Exit status 1 when a text differs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dflash_tools import conditions
from dflash_tools.client import tokens_per_second, tokens_per_step
from dflash_tools.compare import SUMMARY_HEADER, Pair, chat_pair, completion_pair, summary_row
from dflash_tools.errors import UserError, run_cli
from dflash_tools.fork.build import bin_dir as fork_bin_dir
from dflash_tools.server import LlamaServer
from dflash_tools.table import table
from dflash_tools.tiny import (
    ATTENTION,
    CHECKOUT,
    TINY_PAIRS,
    TinyPair,
    convert_tiny_target,
    held_out_prompts,
)

PROG = "python -m dflash_tools.demo"
CONTEXT = 1024
KV = "f32"
OUTTYPE = "f32"
SHOWN_KINDS = ("story", "code", "plain story")
MAX_TOKENS = 96


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    args = _parser().parse_args(argv)
    return run_cli(PROG, lambda: _run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, default=CHECKOUT / ".demo", help="folder for GGUF files and logs")
    parser.add_argument("--bin-dir", type=Path, help="folder of llama-server; default: the last build of build-fork")
    # In so small a model two threads mostly wait for each other.
    parser.add_argument("--threads", type=int, default=1, help="default 1")
    parser.add_argument(
        "--only", choices=("convert", "serve"),
        help="convert: write the GGUF files and stop; serve: take those that --work has, written elsewhere",
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    return parser


def _run(args: argparse.Namespace) -> int:
    bin_dir = args.bin_dir or (Path() if args.only == "convert" else fork_bin_dir())
    args.work.mkdir(parents=True, exist_ok=True)
    requests = _requests()
    targets: dict[str, Path] = {}
    rows, different = [], 0
    for pair in TINY_PAIRS:
        shown = pair is ATTENTION
        print(f"\n== {pair.name} " + "=" * (70 - len(pair.name)))
        if pair.family not in targets:
            targets[pair.family] = _convert_target(pair, args.work, args.only == "serve")
        drafter = _convert_drafter(pair, args.work, args.only == "serve")
        if args.only == "convert":
            continue
        answers = _answers(pair, targets[pair.family], drafter, bin_dir, args, requests, shown)
        different += sum(not answer.equal for answer in answers)
        rows.append(summary_row(pair.name, answers))
    if args.only == "convert":
        return 0
    print("\n== Summary " + "=" * 67)
    print(table(["pair", *SUMMARY_HEADER[1:]], rows))
    print(
        f"\nConditions: tiny trained pairs, target and drafter {OUTTYPE}, KV {KV}, context {CONTEXT}, 1 slot, greedy,\n"
        f"  up to {MAX_TOKENS} new tokens, prompts held out from training;\n"
        f"  {conditions.machine(bin_dir, args.threads)};\n"
        f"  llama-server {conditions.build(bin_dir)}; each request on both servers in turn.\n"
        "  tokens/step includes the bonus token. Such small models show that the path is right, not how fast it is."
    )
    if different:
        print(f"\nFAIL: {different} texts differ from plain decoding.")
        return 1
    print("\nOK: every text is equal to plain decoding.")
    return 0


def _requests() -> list[dict[str, Any]]:
    """One held-out prompt of each shown kind: two chats and a text to go on with."""
    prompts = held_out_prompts()
    found = [next((p for p in prompts if p["kind"] == kind), None) for kind in SHOWN_KINDS]
    if None in found:
        raise UserError(f"models/tiny/prompts.json: has not every kind of {', '.join(SHOWN_KINDS)}")
    return found


def _convert_target(pair: TinyPair, work: Path, made: bool) -> Path:
    target = work / f"{pair.family}-{OUTTYPE}.gguf"
    if made:
        return _made(target)
    print(f"{_short(pair.target)} -> {_short(target)} (llama.cpp's own converter)", flush=True)
    return convert_tiny_target(pair, target, OUTTYPE)


def _made(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: is not there; `{PROG} --only convert --work {path.parent}` writes it")
    return path


def _convert_drafter(pair: TinyPair, work: Path, made: bool) -> Path:
    from dflash_convert.cli import main as convert_dflash

    drafter = work / f"{pair.family}-{pair.engine}-{OUTTYPE}.gguf"
    if made:
        return _made(drafter)
    words = [_short(pair.drafter), "--target-model-dir", _short(pair.target), "--outtype", OUTTYPE]
    print(f"$ convert-dflash {shlex.join([*words, '--outfile', _short(drafter)])}", flush=True)
    words = [str(pair.drafter), "--target-model-dir", str(pair.target), "--outtype", OUTTYPE]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        failed = convert_dflash([*words, "--outfile", str(drafter)])
    if pair is ATTENTION:
        print(said.getvalue(), end="")
    if failed:
        raise UserError(f"{pair.drafter}: convert-dflash failed (it says why above)")
    return drafter


def _answers(
    pair: TinyPair,
    target: Path,
    drafter: Path,
    bin_dir: Path,
    args: argparse.Namespace,
    requests: Sequence[dict[str, Any]],
    shown: bool,
) -> list[Pair]:
    options = ["-c", str(CONTEXT), "-np", "1", "-t", str(args.threads), "-ctk", KV, "-ctv", KV]
    server = _short(bin_dir / "llama-server")
    print(f"$ {server} -m {_short(target)} -md {_short(drafter)} {' '.join(pair.switch)}", flush=True)
    log = args.work / f"{pair.family}-{pair.engine}"
    plain = LlamaServer(bin_dir, target, extra=options, log=log.with_suffix(".plain.log"))
    drafted = LlamaServer(bin_dir, target, drafter, switch=pair.switch, extra=options, log=log.with_suffix(".log"))
    answers = []
    with plain, drafted:
        for request in requests:
            if "messages" in request:
                answer = chat_pair(plain, drafted, request["messages"], MAX_TOKENS)
            else:
                answer = completion_pair(plain, drafted, request["prompt"], MAX_TOKENS)
            answers.append(answer)
            if shown or not answer.equal:
                _show(request, answer)
    return answers


def _show(request: dict[str, Any], answer: Pair) -> None:
    if "messages" in request:
        print(f"\nchat: {request['messages'][-1]['content']}")
    else:
        print(f"\ncompletion: {request['prompt'].strip()}")
    for line in answer.drafted.completion.text.strip("\n").splitlines():
        for part in textwrap.wrap(line, 100) or [""]:
            print(f"    | {part}")
    for label, run in (("without drafter", answer.plain), ("with drafter", answer.drafted)):
        print(
            f"  {label:15} {run.tokens:4} tokens in {run.steps:4} steps, {tokens_per_step([run]):5.2f} per step,"
            f" {tokens_per_second([run]):7.1f} tok/s"
        )
    print("  same text       " + ("yes" if answer.equal else f"NO: {answer.difference}"))


def _short(path: Path) -> str:
    """`path` as seen from the current directory when it lies below it."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    raise SystemExit(main())
