"""Make a build, once per set of inputs.

It counts as built when the programs in it have passed the self-test, not before; then a second call has nothing to do.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TextIO

from dflash_tools.errors import UserError, join_words
from dflash_tools.fork import toolchain
from dflash_tools.fork.plan import PROGRAMS, Options, Plan, make_plan
from dflash_tools.fork.selftest import Check, self_test
from dflash_tools.fork.source import fetch_source, pinned_tree
from dflash_tools.fork.workspace import Say, Workspace, find_workspace, quiet
from dflash_tools.fork.worktree import checkout, unsaved_work

STAMP = "build-fork.json"  # in the build folder, once the self-test has passed
LOG = "build-fork.log"


def bin_dir(ws: Workspace | None = None) -> Path:
    """Folder with the programs of the last build that passed its self-test. Raises UserError when there is none."""
    ws = ws or find_workspace()
    missing = [name for name in PROGRAMS if not (ws.bin / name).is_file()]
    if missing:
        raise UserError(f"{ws.show(ws.bin)} has no {join_words(missing)}: run build-fork first.")
    return ws.bin


def build(
    ws: Workspace, options: Options, source: Path | None = None, url: str | None = None, say: Say = quiet
) -> Plan:
    """Make the build that `options` describe, unless it is there, and point `.fork/bin` to it.

    For a build without patches that is `.fork/upstream-bin`.
    Raises UserError when something is missing, does not compile, or does not pass the self-test. What was compiled
    stays, so that the next call goes on from there.
    """
    plan = make_plan(ws, options)
    if plan.problems:
        raise UserError("\n".join(plan.problems))
    ws.made.mkdir(exist_ok=True)
    with ws.lock(plan.folder.name, say):
        done = _stamp(plan) if not options.work_tree else None
        if done and set(plan.targets) <= set(done["targets"]) and _programs_there(plan):
            skipped = [c for c in done["checks"] if c["skipped"]]
            again = partial(self_test, ws, plan.bin, plan.backend, say, upstream=options.upstream)
            if skipped and (checks := again(only_if_more_than=skipped)):
                _write_stamp(plan, checks)
            say(f"{ws.show(plan.folder)} is up to date: same commit, patches, options and compiler; nothing to do")
            if not options.upstream:
                _note_unsaved_work(ws, say)
        else:
            _make(ws, plan, options, source, url, say)
    _link_to(ws, ws.upstream_bin if options.upstream else ws.bin, plan.bin)
    return plan


def _make(ws: Workspace, plan: Plan, options: Options, source: Path | None, url: str | None, say: Say) -> None:
    for reason in plan.reasons:
        say(reason)
    toolchain.check_disk(ws.made, plan.disk)
    fetch_source(ws, source, url, say)
    if options.upstream:
        _link_to(ws, ws.upstream / ws.tree.name, pinned_tree(ws, say))
        say(f"building {ws.show(ws.pinned)}, llama.cpp without the patches")
    elif options.work_tree:
        if not ws.tree.is_dir():
            checkout(ws, say=say)
        say(f"building {ws.show(ws.tree)} as it is, not patches/")
    else:
        checkout(ws, say=say)
    plan.folder.mkdir(parents=True, exist_ok=True)
    (plan.folder / STAMP).unlink(missing_ok=True)
    env = _environment(ws, plan)
    with (plan.folder / LOG).open("w", encoding="utf-8") as log:
        say(f"configuring {ws.show(plan.folder)} ({plan.backend})")
        run_logged(plan.configure, env, log, "cmake could not configure the build", say)
        for line in _warnings(plan.folder / LOG):
            say(line)
        start = time.monotonic()
        say(f"compiling with {plan.compile[plan.compile.index('--parallel') + 1]} jobs; log: {plan.folder / LOG}")
        run_logged(plan.compile, env, log, "the build failed", say)
        say(f"compiled in {time.monotonic() - start:.0f} s")
    missing = [name for name in plan.targets if not (plan.bin / name).is_file()]
    if missing:
        raise UserError(f"{plan.bin}: the build ended well but made no {join_words(missing)}; log: {plan.folder / LOG}")
    _write_stamp(plan, self_test(ws, plan.bin, plan.backend, say, upstream=options.upstream) or [])


def _environment(ws: Workspace, plan: Plan) -> dict[str, str]:
    """The compiler cache finds objects again from another clone of the project, and never those of another CPU."""
    env = dict(os.environ)
    env.setdefault("CCACHE_BASEDIR", str(ws.root))
    env.setdefault("CCACHE_NOHASHDIR", "1")
    env.setdefault("CCACHE_SLOPPINESS", "time_macros")
    if "cpu" in plan.inputs:
        features = plan.folder / "cpu-features"
        if not features.is_file() or features.read_text() != plan.inputs["cpu"]:
            features.write_text(str(plan.inputs["cpu"]))
        env.setdefault("CCACHE_EXTRAFILES", str(features))
    # tools that pip installed beside a Python that is not activated
    env["PATH"] = os.pathsep.join([env.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    return env


def run_logged(words: list[str], env: Mapping[str, str], log: TextIO, what_failed: str, say: Say = quiet) -> None:
    """Run a command with its output in `log` (an open text file), telling its progress in steps of ten percent.

    Raises UserError with the lines that matter when it fails.
    """
    log.write(f"$ {shlex.join(words)}\n")
    log.flush()
    try:
        process = subprocess.Popen(
            words,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as e:
        raise UserError(f"{what_failed}: {words[0]}: {e.strerror}") from e
    lines: list[str] = []
    told = 0
    assert process.stdout is not None
    try:
        for line in process.stdout:
            log.write(line)
            lines.append(line.rstrip())
            if (now := _percent(line)) is not None and now >= told + 10:
                told = now - now % 10
                say(f"  {told} %")
                log.flush()
        status = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    log.flush()
    if status:
        shown = "\n".join(f"  {line}" for line in relevant_lines(lines))
        how = f"ended by signal {-status}" if status < 0 else f"exit status {status}"
        raise UserError(f"{what_failed} ({how})\n{shown}\nThe whole log: {log.name}")


def _percent(line: str) -> int | None:
    """How far a build is, from ninja's `[12/224]` or make's `[ 12%]`."""
    if match := re.match(r"\[(\d+)/(\d+)\]", line):
        return 100 * int(match[1]) // int(match[2])
    return int(match[1]) if (match := re.match(r"\[ *(\d+)%\]", line)) else None


def relevant_lines(lines: list[str], most: int = 14) -> list[str]:
    """The lines of a failed build that say why: errors with what follows them, else the last lines."""
    reason = re.compile(r"(\berror\b|\bfatal\b|CMake Error|undefined reference|No space left|Killed|not found)", re.I)
    lines = [line for line in lines if line.strip() and not re.match(r"\[\d+/\d+\]|FAILED:|.*-- Configuring", line)]
    at = [i for i, line in enumerate(lines) if reason.search(line) and len(line) < 400]
    if not at:
        return [line[:300] for line in lines[-most:]]
    keep = sorted({i + k for i in at for k in range(4) if i + k < len(lines)})[:most]
    return [lines[i][:300] for i in keep]


def _warnings(log: Path) -> list[str]:
    """What cmake found missing and goes on without, as far as the user will feel it."""
    text = log.read_text("utf-8", "replace")
    lines = []
    if "OpenSSL not found" in text:
        lines.append("no OpenSSL headers: llama-server cannot download models itself (-hf); all else works")
    if re.search(r"Could NOT find OpenMP", text):
        lines.append("no OpenMP: the CPU backend uses its own threads")
    return lines


# What is there already


def _stamp(plan: Plan) -> dict | None:
    try:
        found = json.loads((plan.folder / STAMP).read_text("utf-8"))
        return found if found["inputs"] == json.loads(json.dumps(plan.inputs)) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_stamp(plan: Plan, checks: list[Check]) -> None:
    stamp = {"inputs": plan.inputs, "targets": plan.targets, "checks": [check.__dict__ for check in checks]}
    part = plan.folder / f"{STAMP}.part"
    part.write_text(json.dumps(stamp, indent=1) + "\n", "utf-8")
    part.replace(plan.folder / STAMP)


def _programs_there(plan: Plan) -> bool:
    return all((plan.bin / name).is_file() for name in plan.targets)


def _note_unsaved_work(ws: Workspace, say: Say) -> None:
    if (ws.tree / ".git").is_dir() and (work := unsaved_work(ws)):
        say(f"note: {ws.show(ws.tree)} has {'; '.join(work)}, which is not in patches/ nor in this build")


def _link_to(ws: Workspace, link: Path, folder: Path) -> None:
    """Make `link` a relative link to `folder`, by a rename."""
    target = os.path.relpath(folder, link.parent)
    if link.is_symlink() and link.readlink() == Path(target):
        return
    if link.exists() and not link.is_symlink():
        raise UserError(f"{ws.show(link)} is in the way: it should be a link to {target}. Move it away.")
    link.parent.mkdir(exist_ok=True)
    with ws.scratch() as scratch:
        (scratch / "link").symlink_to(target)
        (scratch / "link").replace(link)
