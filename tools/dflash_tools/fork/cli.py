"""Command line of build-fork."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dflash_tools.errors import UserError, run_cli
from dflash_tools.fork.build import bin_dir, build
from dflash_tools.fork.ctest import ctest_programs, run_tests
from dflash_tools.fork.plan import BACKENDS, Options, Plan, make_plan
from dflash_tools.fork.selftest import converted_pair
from dflash_tools.fork.series import validate
from dflash_tools.fork.source import fetch_source, pinned_tree
from dflash_tools.fork.toolchain import default_jobs, find_tool
from dflash_tools.fork.workspace import Workspace, find_workspace
from dflash_tools.fork.worktree import checkout, export

PROG = "build-fork"
COMMANDS = {
    "fetch": "get the pinned llama.cpp and prove that it is the pinned one",
    "checkout": "make .fork/llama.cpp, a git work tree with every patch as a commit",
    "export": "rewrite patches/ from the commits of .fork/llama.cpp",
    "validate": "prove that the series applies exactly and round-trips (seconds, no work tree)",
    "build": "fetch, patch, compile, test what was compiled (the default command)",
    "test": "build upstream's tests of the touched code and those of the patches, and run them",
}


def say(line: str) -> None:
    print(f"{PROG}: {line}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run build-fork with the words after its name; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    extra: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, extra = words[:at], words[at + 1 :]
    if not words or (words[0] not in COMMANDS and words[0] not in ("-h", "--help")):
        words.insert(0, "build")
    args = _parser().parse_args(words)
    if extra and args.command not in ("build", "test"):
        _parser().error(f"{args.command} takes no cmake arguments")
    args.extra = tuple(extra)
    return run_cli(PROG, lambda: BODIES[args.command](find_workspace(), args))


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--source", "--sdist", type=Path, metavar="PATH",
        help="take llama.cpp from here: a git repository, or the sdist that carries it, packed or unpacked",
    )  # fmt: skip
    common.add_argument("--source-url", metavar="URL", help="fetch llama.cpp from this repository")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    building = argparse.ArgumentParser(add_help=False)
    building.add_argument(
        "--backend", choices=BACKENDS, help="default: cuda with nvcc and a GPU, metal on macOS, else cpu"
    )
    building.add_argument(
        "--cuda-arch", metavar="ARCH",
        help="GPU architectures: 120, a list such as '86;89;120', or native (default: the GPUs of this machine)",
    )  # fmt: skip
    building.add_argument("--jobs", "-j", type=_positive, help="compilers at once (default: cores, by free memory)")
    building.add_argument(
        "--ui", action="store_true", help="with the web page of llama-server (needs npm and a network)"
    )
    building.add_argument("--tests", action="store_true", help="build the programs of 'build-fork test' too")
    building.add_argument(
        "--work-tree", action="store_true", help="build .fork/llama.cpp as it is, with edits that are not in patches/"
    )
    building.add_argument(
        "--upstream", action="store_true", help="build the pinned llama.cpp without patches, to measure against"
    )
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Get the pinned llama.cpp, apply the patches, build it, and prove that it runs.",
        epilog="Without a command: build. Words after -- go to cmake: build-fork -- -DGGML_NATIVE=OFF",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in COMMANDS.items():
        parents = [common, building] if name in ("build", "test") else [common]
        command = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".", parents=parents)
        if name == "checkout":
            command.add_argument("--force", action="store_true", help="set aside work that is not in patches/")
        if name == "build":
            command.add_argument("--dry-run", action="store_true", help="print the cmake lines and why, build nothing")
    return parser


def _positive(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of jobs")
    return int(text)


def _fetch(ws: Workspace, args: argparse.Namespace) -> None:
    fetch_source(ws, args.source, args.source_url, say, full_check=True)
    say(f"llama.cpp {ws.pin.commit}, tree {ws.pin.tree}, is in {ws.show(pinned_tree(ws, say))}")


def _checkout(ws: Workspace, args: argparse.Namespace) -> None:
    fetch_source(ws, args.source, args.source_url, say)
    checkout(ws, args.force, say)


def _export(ws: Workspace, _args: argparse.Namespace) -> None:
    for name in export(ws, say):
        say(f"patches/{name}")


def _validate(ws: Workspace, args: argparse.Namespace) -> None:
    fetch_source(ws, args.source, args.source_url, say)
    start = time.monotonic()
    results = validate(ws)
    for result in results:
        if result.name:
            print(f"{'BAD' if result.problems else 'ok '} {result.name}")
        for problem in result.problems:
            print(f"    {problem}" if result.name else f"BAD {problem}")
    bad = sum(len(result.problems) for result in results)
    if bad:
        raise UserError(f"{bad} {'problem' if bad == 1 else 'problems'} in patches/, see docs/patches.md")
    say(f"{len(results) - 1} patches apply exactly and round-trip ({time.monotonic() - start:.1f} s)")


def _options(args: argparse.Namespace, tests: bool) -> Options:
    return Options(args.backend, args.cuda_arch, args.jobs, args.ui, tests, args.work_tree, args.upstream, args.extra)


def _build(ws: Workspace, args: argparse.Namespace) -> None:
    options = _options(args, args.tests)
    if args.dry_run:
        _show_plan(ws, make_plan(ws, options))
        return
    build(ws, options, args.source, args.source_url, say)
    if options.upstream:
        say(f"upstream's programs, without the patches, are in {ws.show(ws.upstream_bin)}")
        return
    programs = ws.show(bin_dir(ws))
    say(f"the programs are in {programs}")
    say(f"start the server: {programs}/llama-server -m TARGET.gguf -md DRAFTER.gguf --dflash --port 8080")
    if pair := converted_pair(ws):
        target, drafter = (shlex.quote(ws.show(path)) for path in pair)
        say(f"with the tiny pair: {programs}/llama-server -m {target} -md {drafter} --dflash --port 8080")


def _show_plan(ws: Workspace, plan: Plan) -> None:
    for reason in plan.reasons:
        say(reason)
    source = Path(plan.configure[plan.configure.index("-S") + 1])
    what = "with the patches" if source == ws.tree else "without patches"
    say(f"source: {ws.show(source)}, llama.cpp {ws.pin.commit} {what}")
    print(shlex.join(plan.configure))
    print(shlex.join(plan.compile), flush=True)
    if plan.problems:
        print(f"{PROG}: here this build would stop before it starts:", *plan.problems, sep="\n", file=sys.stderr)


def _test(ws: Workspace, args: argparse.Namespace) -> None:
    plan = build(ws, _options(args, True), args.source, args.source_url, say)
    beside = Path(plan.configure[0]).with_name("ctest")
    ctest = str(beside) if beside.is_file() else find_tool("ctest") or "ctest"
    run_tests(ctest, plan.folder, ctest_programs(ws), args.jobs or default_jobs(), say)


BODIES = {
    "fetch": _fetch,
    "checkout": _checkout,
    "export": _export,
    "validate": _validate,
    "build": _build,
    "test": _test,
}

if __name__ == "__main__":
    raise SystemExit(main())
