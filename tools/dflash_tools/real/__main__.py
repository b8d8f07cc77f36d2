"""`python -m dflash_tools.real`: convert and serve a real pair, and hold it to plain decoding on real prompts.

The drafter is one trained for SmolLM2-135M-Instruct, given by path. Everything else comes from the package index into a
work folder. Exit status 0 when the answers are equal and the drafter saves enough steps (or when there is no drafter to
test), 1 otherwise.

In f16 an answer may part from plain decoding at a near-tie: activations are rounded to f16 on their way into a matrix,
so the kernels for one row and for several, which sum in another order, differ by up to 0.04 nats in a log-probability
(measured on a CPU, the same 40 tokens of two prompts decoded one by one and as a prompt). Such places are shown with
their margin. `--outtype f32` holds the same weights in f32, where no answer may part.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dflash_convert.cli import convert as convert_drafter
from dflash_convert.upstream import convert_target

from dflash_tools import conditions
from dflash_tools.client import tokens_per_step
from dflash_tools.compare import SUMMARY_HEADER, Pair, chat_pair, summary_row
from dflash_tools.errors import run_cli
from dflash_tools.fork.build import bin_dir as fork_bin_dir
from dflash_tools.real.packages import SMOLLM2, extract
from dflash_tools.real.prompts import PER_SET, prompt_sets
from dflash_tools.real.target import dequantised_llama
from dflash_tools.server import LlamaServer
from dflash_tools.table import table

PROG = "python -m dflash_tools.real"
CONTEXT = 2048
MIN_TOKENS_PER_STEP = 2.5
MIN_EQUAL_SHARE = 0.8


@dataclass(frozen=True)
class Precision:
    """How the pair is stored and served, and up to which margin (nats) a difference is a near-tie there."""

    options: tuple[str, ...]
    near_tie: float


PRECISIONS = {
    "f16": Precision(("-ctk", "f16", "-ctv", "f16"), 0.05),
    # Flash attention would take K and V in f16 again.
    "f32": Precision(("-ctk", "f32", "-ctv", "f32", "-fa", "off"), 0.0),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    args = _parser().parse_args(argv)
    return run_cli(PROG, lambda: _run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__.split("\n\n")[0])
    parser.add_argument("--drafter", type=Path, required=True, help="DFlash checkpoint for SmolLM2-135M-Instruct")
    parser.add_argument(
        "--work", type=Path, default=Path(".real"), help="folder for downloads and GGUF files (default .real)"
    )
    parser.add_argument("--bin-dir", type=Path, help="folder of llama-server; default: the last build of build-fork")
    parser.add_argument(
        "--switch", default="--dflash", help="options that choose the engine, for builds without --dflash"
    )
    parser.add_argument("--per-set", type=int, default=PER_SET, help=f"prompts of each set (default {PER_SET})")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens per answer (default 128)")
    parser.add_argument("--outtype", choices=list(PRECISIONS), default="f16", help="of both models (default f16)")
    parser.add_argument("--threads", type=int, default=conditions.usable_cores(), help="default: all cores")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    return parser


def _run(args: argparse.Namespace) -> int:
    if not args.drafter.is_dir():
        print(f"No drafter at {args.drafter}, so there is nothing to check against real text; skipped.")
        return 0
    bin_dir = args.bin_dir or fork_bin_dir()
    print("Fetching the target and the prompts from the package index ...", flush=True)
    sets = prompt_sets(args.work, args.per_set)
    target, drafter = make_pair(args.drafter, args.work, args.outtype)
    precision = PRECISIONS[args.outtype]
    options = ["-t", str(args.threads), "-c", str(CONTEXT), "-np", "1", *precision.options]
    plain = LlamaServer(bin_dir, target, extra=options, log=args.work / "plain.log")
    drafted = LlamaServer(
        bin_dir, target, drafter, switch=shlex.split(args.switch), extra=options, log=args.work / "drafted.log"
    )
    pairs: dict[str, list[Pair]] = {}
    with plain, drafted:
        for name, prompts in sets.items():
            print(f"{name}: {len(prompts)} prompts ", end="", flush=True)
            pairs[name] = []
            for prompt in prompts:
                pairs[name].append(chat_pair(plain, drafted, [{"role": "user", "content": prompt}], args.tokens))
                print("." if pairs[name][-1].equal else "x", end="", flush=True)
            print()
    print(
        f"\nConditions: SmolLM2-135M-Instruct, drafter {args.drafter.name}, both {args.outtype},\n"
        f"  {' '.join(options)} {args.switch}, chat template, greedy, up to {args.tokens} new tokens,\n"
        f"  prompts spread evenly over each set, each prompt on both servers in turn;\n"
        f"  {conditions.machine(bin_dir, args.threads)};\n"
        f"  llama-server {conditions.build(bin_dir)}\n"
    )
    return report(pairs, precision.near_tie)


def make_pair(checkpoint: Path, work: Path, outtype: str) -> tuple[Path, Path]:
    """The target's and the drafter's GGUF in `work`; the target is made once, the drafter every time."""
    directory = dequantised_llama(extract(SMOLLM2, work), work / "smollm2-135m-hf")
    target = work / f"smollm2-135m-{outtype}.gguf"
    if not target.exists():
        print(f"Converting the target to {outtype} ...", flush=True)
        convert_target(directory, target, outtype)
    drafter = work / f"smollm2-135m-dflash-{outtype}.gguf"
    print(f"Converting the drafter to {outtype} ...", flush=True)
    convert_drafter(checkpoint, directory, drafter, outtype)
    return target, drafter


def report(pairs: dict[str, list[Pair]], near_tie: float) -> int:
    """Print the table, every first difference and the verdict; returns the exit status."""
    everything = [pair for some in pairs.values() for pair in some]
    rows = [summary_row(name, some) for name, some in pairs.items()] + [summary_row("all", everything)]
    print(table(["set", *SUMMARY_HEADER[1:]], rows))
    for name, some in pairs.items():
        for number, pair in enumerate(some):
            if not pair.equal:
                print(f"  {name} prompt {number}: {pair.difference}")
    parted = [pair.difference for pair in everything if pair.difference]
    ties = sum(difference.margin is not None and difference.margin < near_tie for difference in parted)
    equal = len(everything) - len(parted)
    reached = tokens_per_step([pair.drafted for pair in everything])
    passed = ties == len(parted) and equal >= MIN_EQUAL_SHARE * len(everything) and reached >= MIN_TOKENS_PER_STEP
    said = [f"{equal} of {len(everything)} answers equal to plain decoding"]
    if parted:
        said.append(f"{len(parted)} not, {ties} of them parting at a near-tie (margin below {near_tie} nats)")
    said.append(f"{reached:.2f} tokens per verify step (at least {MIN_TOKENS_PER_STEP} wanted)")
    print(f"\n{'PASS' if passed else 'FAIL'}: {'; '.join(said)}.")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
