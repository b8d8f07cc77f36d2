"""Command line of bench-dflash."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from dflash_tools.bench import record as records
from dflash_tools.bench.record import Record
from dflash_tools.errors import UserError, run_cli

PROG = "bench-dflash"


def main(argv: Sequence[str] | None = None) -> int:
    """Run bench-dflash with the words after its name; returns the exit status."""
    args = _parser().parse_args(argv)
    return run_cli(PROG, lambda: args.body(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG, description="What a round of speculation costs, and what a drafter brings, side by side."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--out", type=Path, metavar="STEM", help="write STEM.json (default bench-results/COMMAND-TIME)")
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show a traceback with an error")
    _add_cost(commands, [output, debug])
    return parser


def _add_cost(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    try:
        from dflash_tools.bench.cost import add_cost_arguments, run_cost
    except ModuleNotFoundError as cause:
        if cause.name != "dflash_tools.bench.cost":
            raise
        return
    what = "time the parts of a round at real shapes, with random weights"
    cost = commands.add_parser("cost", help=what, description=what[0].upper() + what[1:] + ".", parents=parents)
    add_cost_arguments(cost)
    cost.set_defaults(body=lambda args: _deliver(run_cost(args), _stem(args)))


def _stem(args: argparse.Namespace) -> Path:
    stem = args.out or Path("bench-results") / f"{args.command}-{time.strftime('%Y%m%d-%H%M%S')}"
    if stem.is_dir():
        raise UserError(f"{stem}: is a folder; --out takes the beginning of the names of the files to write")
    return stem.with_suffix("") if stem.suffix in (".json", ".md", ".html") else stem


def _deliver(record: Record, stem: Path) -> int:
    """Write the record and its reports."""
    records.write(record, stem.with_name(stem.name + ".json"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
