"""Command line of bench-dflash."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dflash_tools.bench import record as records
from dflash_tools.bench.arms import CHAT, RAW, THINKING
from dflash_tools.bench.compare import compare
from dflash_tools.bench.cost import add_cost_arguments, run_cost
from dflash_tools.bench.figures import write_figures
from dflash_tools.bench.page import page
from dflash_tools.bench.prompts import SUITES
from dflash_tools.bench.record import BROKEN_OFF, FAILED, Record
from dflash_tools.bench.report import blocks, brief, markdown, terminal
from dflash_tools.bench.run import run_study
from dflash_tools.bench.study import INTERLEAVES, BuildSpec, DrafterSpec, ServerSpec, Study, checked, read_study
from dflash_tools.errors import UserError, run_cli

PROG = "bench-dflash"
COMMANDS = {
    "cost": "time the parts of a round at real shapes, with random weights",
    "run": "ask real models, with and without drafter, and compare speed, acceptance and text",
    "compare": "show one record as a multiple of another, if they were measured alike",
    "show": "show a record again, or write its reports",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run bench-dflash with the words after its name; returns the exit status."""
    args = _parser().parse_args(argv)
    bodies = {"cost": _cost, "run": _run, "compare": _compare, "show": _show}
    with _terminable():
        return run_cli(PROG, lambda: bodies[args.command](args))


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does: its servers are stopped, and what was measured is kept."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show a traceback with an error")
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument(
        "--out", type=Path, metavar="STEM",
        help="write STEM.json, STEM.md and STEM.html (default bench-results/COMMAND-TIME)",
    )  # fmt: skip
    parser = argparse.ArgumentParser(
        prog=PROG, description="What a round of speculation costs, and what a drafter brings, side by side."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {
        name: commands.add_parser(
            name, help=what, description=what[0].upper() + what[1:] + ".",
            parents=[common] if name == "compare" else [common, output],
        )
        for name, what in COMMANDS.items()
    }  # fmt: skip
    add_cost_arguments(made["cost"])
    _add_run_arguments(made["run"])
    made["compare"].add_argument("records", nargs=2, type=Path, metavar="RECORD", help="A.json and B.json")
    made["compare"].add_argument(
        "--allow", action="append", default=[], metavar="CONDITION",
        help="compare although this condition differs, e.g. machine.gpus or drafters (may be repeated)",
    )  # fmt: skip
    made["show"].add_argument("record", type=Path, metavar="RECORD", help="A.json")
    made["show"].add_argument("--figures", type=Path, metavar="DIR", help="write every plot as DIR/<plot>.svg")
    return parser


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """A study in a file, and options that override it. The defaults are those of Study."""
    usual = Study()
    parser.add_argument("study", nargs="?", type=Path, help="a bench.toml; options below override it")
    models = parser.add_argument_group("what is compared")
    models.add_argument("--target", type=Path, metavar="GGUF", help="the model")
    models.add_argument(
        "--drafter", action="append", default=[], metavar="[NAME=]GGUF", help="its drafter (may be repeated)"
    )
    models.add_argument("--switch", default="--dflash", help="options that switch the drafters on (default --dflash)")
    models.add_argument("--bin-dir", type=Path, help="folder of llama-server (default: the last build of build-fork)")
    models.add_argument("--options", metavar="WORDS", help="of every llama-server, in one word: '-c 8192 -fa on'")
    models.add_argument(
        "--server", action="append", default=[], metavar="NAME=URL", help="an engine that runs (may be repeated)"
    )
    asked = parser.add_argument_group("what is asked")
    asked.add_argument(
        "--suites", type=_words, metavar="S,..", help=f"of {','.join(SUITES)}, or .json files (default: all of them)"
    )
    asked.add_argument("--prompts", type=int, metavar="N", help=f"of each suite (default {usual.prompts})")
    asked.add_argument("--max-tokens", type=int, metavar="N", help=f"of an answer (default {usual.max_tokens})")
    asked.add_argument("--long-tokens", type=int, metavar="N", help=f"of a long prompt (default {usual.long_tokens})")
    asked.add_argument("--temperatures", type=_numbers, metavar="T,..", help="default 0")
    asked.add_argument("--thinking", type=_words, metavar="W,..", help=f"of {','.join(THINKING)} (default: default)")
    asked.add_argument("--templates", type=_words, metavar="W,..", help=f"of {CHAT},{RAW} (default {CHAT})")
    asked.add_argument("--ignore-eos", action="store_const", const=True, help="answers of full length")
    how = parser.add_argument_group("how")
    how.add_argument("--repeats", type=int, metavar="N", help=f"passes over everything (default {usual.repeats})")
    how.add_argument("--warmup", type=int, metavar="N", help=f"requests before (default {usual.warmup})")
    how.add_argument("--interleave", choices=INTERLEAVES, help="all servers loaded (prompt), or one at a time (server)")
    how.add_argument("--work", type=Path, help=f"folder for downloads and logs (default {usual.work})")


def _cost(args: argparse.Namespace) -> int:
    return _deliver(run_cost(args), _stem(args))


def _run(args: argparse.Namespace) -> int:
    study = read_study(args.study) if args.study else Study()
    overrides = {
        name: getattr(args, name)
        for name in (
            *("target", "suites", "prompts", "max_tokens", "long_tokens", "temperatures", "thinking", "templates"),
            *("ignore_eos", "repeats", "warmup", "interleave", "work"),
        )
        if getattr(args, name) is not None
    }
    if args.options is not None:
        overrides["options"] = tuple(shlex.split(args.options))
    if args.bin_dir:
        overrides["build"] = (BuildSpec("fork", args.bin_dir),)
    if args.drafter:
        overrides["drafter"] = tuple(_drafter(text, args.switch) for text in args.drafter)
    if args.server:
        overrides["server"] = tuple(_server(text) for text in args.server)
    return _deliver(run_study(checked(replace(study, **overrides))), _stem(args))


def _compare(args: argparse.Namespace) -> int:
    one, two = (records.read(path) for path in args.records)
    a, b = args.records
    names = (a.name, b.name) if a.name != b.name else (str(a), str(b))
    found = compare(one, two, names, args.allow)
    alike = [line for line in brief(one) if line in brief(two)]
    print(blocks("\n".join([f"A = {a}, B = {b}", *alike]), found))
    return 0


def _show(args: argparse.Namespace) -> int:
    record = records.read(args.record)
    print(terminal(record))
    if args.out:
        _reports(record, _stem(args))
    if args.figures:
        write_figures(record, args.figures)
    return 0


def _drafter(text: str, switch: str) -> DrafterSpec:
    name, _, path = text.rpartition("=")
    return DrafterSpec(Path(path), name, tuple(shlex.split(switch)))


def _server(text: str) -> ServerSpec:
    name, found, url = text.partition("=")
    if not found:
        raise UserError(f"--server {text}: expected NAME=URL")
    return ServerSpec(name, url)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in _words(text))


def _stem(args: argparse.Namespace) -> Path:
    stem = args.out or Path("bench-results") / f"{args.command}-{time.strftime('%Y%m%d-%H%M%S')}"
    if stem.is_dir():
        raise UserError(f"{stem}: is a folder; --out takes the beginning of the names of the files to write")
    return stem.with_suffix("") if stem.suffix in (".json", ".md", ".html") else stem


def _deliver(record: Record, stem: Path) -> int:
    """Write the record first, so that no fault of a report can lose it. 1 for a measurement that is not whole."""
    records.write(record, _beside(stem, ".json"))
    print(terminal(record))
    _reports(record, stem)
    print(f"\n{stem}.json, .md and .html hold every sample, all conditions and the plots.")
    missing = [note for note in record.notes if note.startswith((BROKEN_OFF, FAILED))]
    if missing:
        print(f"{PROG}: not all of it could be measured:", *missing, sep="\n  ", file=sys.stderr)
    return 1 if missing else 0


def _reports(record: Record, stem: Path) -> None:
    records.replace_text(_beside(stem, ".md"), markdown(record))
    records.replace_text(_beside(stem, ".html"), page(record))


def _beside(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


if __name__ == "__main__":
    raise SystemExit(main())
