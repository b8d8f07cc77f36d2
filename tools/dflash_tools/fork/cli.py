"""Command line of build-fork."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from dflash_tools.errors import UserError, run_cli
from dflash_tools.fork.series import validate
from dflash_tools.fork.source import fetch_source, pinned_tree
from dflash_tools.fork.workspace import Workspace, find_workspace
from dflash_tools.fork.worktree import checkout, export


def say(line: str) -> None:
    print(f"build-fork: {line}", flush=True)


def _fetch(ws: Workspace, args: argparse.Namespace) -> None:
    fetch_source(ws, args.source, args.source_url, say, full_check=True)
    say(f"llama.cpp {ws.pin.commit}, tree {ws.pin.tree}, is in {ws.show(pinned_tree(ws, say))}")


def _checkout(ws: Workspace, args: argparse.Namespace) -> None:
    fetch_source(ws, args.source, args.source_url, say)
    checkout(ws, args.force, say)


def _export(ws: Workspace, args: argparse.Namespace) -> None:
    for name in export(ws, say):
        say(f"patches/{name}")


def _validate(ws: Workspace, args: argparse.Namespace) -> int:
    fetch_source(ws, args.source, args.source_url, say)
    start = time.monotonic()
    bad = 0
    for result in validate(ws):
        if result.name:
            print(f"{'BAD' if result.problems else 'ok '} {result.name}")
        for problem in result.problems:
            print(f"    {problem}" if result.name else f"BAD {problem}")
            bad += 1
    if bad:
        raise UserError(f"{bad} {'problem' if bad == 1 else 'problems'} in patches/")
    say(f"the series applies exactly and round-trips ({time.monotonic() - start:.1f} s)")
    return 0


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--source", "--sdist", type=Path, metavar="PATH")
    common.add_argument("--source-url", metavar="URL")
    common.add_argument("--debug", action="store_true")
    parser = argparse.ArgumentParser(prog="build-fork")
    sub = parser.add_subparsers(required=True)
    for name, body in {"fetch": _fetch, "checkout": _checkout, "export": _export, "validate": _validate}.items():
        p = sub.add_parser(name, parents=[common])
        p.set_defaults(body=body)
        if name == "checkout":
            p.add_argument("--force", action="store_true")
    args = parser.parse_args(argv)
    return run_cli("build-fork", lambda: args.body(find_workspace(), args))


if __name__ == "__main__":
    raise SystemExit(main())
