"""Run what was built before calling it built.

Three checks: the programs start; the operators of the backend compute what the CPU computes; the tiny pair answers
through `llama-server --dflash` with the same greedy text as without the drafter. A check that this machine cannot make
(no GPU, no torch to convert the tiny target) is skipped with a sentence, never silently.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dflash_convert

from dflash_tools.client import tokens_per_step
from dflash_tools.compare import Pair, chat_pair, completion_pair
from dflash_tools.errors import UserError, join_words
from dflash_tools.fork.workspace import Say, Workspace, quiet
from dflash_tools.server import LlamaServer
from dflash_tools.tiny import (
    ATTENTION,
    TinyPair,
    cached_gguf,
    convert_tiny_drafter,
    convert_tiny_target,
    held_out_prompts,
)

START = ("llama-server", "llama-cli", "llama-speculative-simple")
SMOKE_OPS = ("RMS_NORM",)  # quick, on every backend; patches/backend-ops names those that the series touches
PROMPTS = 4  # of those held out from the training of the pair
TOKENS = 48
OUTTYPE = "f32"
NEAR_TIE = 0.01  # nats between the two likeliest tokens


@dataclass(frozen=True)
class Check:
    """One check of the self-test, as it is told and kept. `skipped`: it was not made, and `said` tells why."""

    name: str
    said: str
    skipped: bool = False


def self_test(
    ws: Workspace,
    bin_dir: Path,
    backend: str,
    say: Say = quiet,
    only_if_more_than: Sequence[Mapping[str, object]] | None = None,
    upstream: bool = False,
) -> list[Check] | None:
    """Check the programs in `bin_dir` and return what was checked; each is told as it is done.

    A build of `upstream` is without patches: nothing is asked of it that they add.
    With `only_if_more_than` (checks skipped earlier) nothing is run, and None returned, unless one of them is possible
    now. Raises UserError naming the program and what it did when a check fails.
    """
    no_start = _why_no_start(bin_dir, backend)
    ops = SMOKE_OPS if upstream else operators(ws)
    reasons = {
        "start": no_start,
        "operators": no_start or _why_no_operators(bin_dir, backend),
        "tiny pair": no_start or ("drafting, because upstream has no --dflash" if upstream else _why_no_pair(ws)),
    }
    if only_if_more_than is not None and all(reasons[str(c["name"])] for c in only_if_more_than):
        return None
    checks: list[Check] = []
    made = {"start": _check_start, "operators": partial(_check_operators, ops), "tiny pair": _check_pair}
    for name, check in made.items():
        reason = reasons[name]
        checks.append(Check(name, f"not checked: {reason}", True) if reason else check(ws, bin_dir, backend))
        say(checks[-1].said)
    return checks


def _run(words: Sequence[str | Path], seconds: int) -> tuple[int, str]:
    try:
        done = subprocess.run(
            [str(w) for w in words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, f"did not end within {seconds} s"
    except OSError as e:
        return 126, f"cannot be run: {e.strerror}"
    return done.returncode, done.stdout


def _last(text: str, n: int = 8) -> str:
    return "\n".join(f"  {line[:300]}" for line in text.strip().splitlines()[-n:])


def _why_no_start(bin_dir: Path, backend: str) -> str | None:
    """A CUDA build does not even start without NVIDIA's driver, which a machine that only compiles need not have."""
    if backend == "cuda":
        status, text = _run([bin_dir / START[0], "--version"], 60)
        if status and "libcuda.so" in text:
            return "this machine has no NVIDIA driver, and programs built for CUDA do not start without one"
    return None


def _check_start(_ws: Workspace, bin_dir: Path, _backend: str) -> Check:
    said = ""
    for name in START:
        status, text = _run([bin_dir / name, "--version"], 60)
        if status:
            raise UserError(f"self-test: {name} --version ended with status {status}\n{_last(text)}")
        said = said or next((x for x in text.splitlines() if x.startswith("version")), text.strip().splitlines()[0])
    return Check("start", f"llama-server, llama-cli and llama-speculative-simple start: {said}")


# Operators against the CPU


def devices(bin_dir: Path) -> list[str]:
    """Names of the devices the build can use besides the CPU, such as CUDA0."""
    status, text = _run([bin_dir / "llama-server", "--list-devices"], 120)
    return [] if status else re.findall(r"^ +([A-Za-z]+\d+): ", text, re.MULTILINE)


def _why_no_operators(bin_dir: Path, backend: str) -> str | None:
    if backend == "cpu":
        return "test-backend-ops compares a device with the CPU, and this is a CPU build"
    return None if devices(bin_dir) else f"operators, because this machine shows no {backend} device"


def operators(ws: Workspace) -> tuple[str, ...]:
    """The ggml operators to compare: those `patches/backend-ops` names, one a line, else a quick one."""
    path = ws.patches / "backend-ops"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#")) or SMOKE_OPS


def _check_operators(names: Sequence[str], _ws: Workspace, bin_dir: Path, backend: str) -> Check:
    device, ops = devices(bin_dir)[0], ",".join(names)
    status, text = _run([bin_dir / "test-backend-ops", "test", "-b", device, "-o", ops], 900)
    passed = re.findall(r"^\s*(\d+)/(\d+) tests passed", text, re.MULTILINE)
    if status or not passed or not int(passed[0][1]):
        failed = "\n".join(line for line in text.splitlines() if "FAIL" in line)
        raise UserError(f"self-test: test-backend-ops -b {device} -o {ops} failed\n{_last(failed or text)}")
    return Check("operators", f"{ops} on {device} equal the CPU's in {passed[0][0]} of {passed[0][1]} cases")


# The tiny pair


class _NotConvertedError(Exception):
    pass


def _why_no_pair(ws: Workspace) -> str | None:
    pair = ws.root / "models" / "tiny" / ATTENTION.family
    if not all((pair / part / "model.safetensors").is_file() for part in ("target", ATTENTION.engine)):
        return f"drafting, because the checkout has no {ws.show(pair)}"
    missing = [name for name in ("numpy", "gguf", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return f"drafting, because this Python has no {join_words(missing)} (pip install the project first)"
    if converted_pair(ws) or importlib.util.find_spec("torch") is not None:
        return None
    return "drafting, because converting the tiny target needs torch ('pip install torch', then build-fork again)"


def tiny_pair(ws: Workspace, convert: bool = True) -> tuple[Path, Path]:
    """The tiny attention pair as GGUF (target, drafter), converted once for the self-test and the tests.

    In f32: with f16 weights a verified row and a single row round differently, and near-ties of a tiny model turn.
    """
    converter = Path(dflash_convert.__file__).parent
    folder = ws.made / "test-models"

    def make(what: str, sources: list[Path], work: Callable[[TinyPair, Path, str], Path]) -> Path:
        def run(path: Path) -> None:
            if not convert:
                raise _NotConvertedError
            work(ATTENTION, path, OUTTYPE)

        return cached_gguf([*sources, converter], folder, f"{ATTENTION.family}-{what}-{OUTTYPE}.gguf", run)

    with ws.lock("test-models"):
        target = make("target", [ATTENTION.target], convert_tiny_target)
        return target, make(ATTENTION.engine, [ATTENTION.drafter, ATTENTION.target], convert_tiny_drafter)


def converted_pair(ws: Workspace) -> tuple[Path, Path] | None:
    """`tiny_pair` where it is there already, without converting anything."""
    try:
        return tiny_pair(ws, convert=False)
    except (_NotConvertedError, OSError):
        return None


def _check_pair(ws: Workspace, bin_dir: Path, backend: str) -> Check:
    target, drafter = tiny_pair(ws)
    extra = ["-c", "1024", "-np", "1", *(["-ngl", "99"] if backend != "cpu" else [])]
    with ws.scratch() as scratch:
        plain_server = LlamaServer(bin_dir, target, extra=extra, log=scratch / "plain.log")
        draft_server = LlamaServer(
            bin_dir, target, drafter, switch=ATTENTION.switch, extra=extra, log=scratch / "draft.log"
        )
        with plain_server as plain, draft_server as drafted:
            pairs = [
                chat_pair(plain, drafted, prompt["messages"], TOKENS)
                if "messages" in prompt
                else completion_pair(plain, drafted, prompt["prompt"], TOKENS)
                for prompt in held_out_prompts()[:PROMPTS]
            ]
    return _judge(pairs, backend)


def _judge(pairs: Sequence[Pair], backend: str) -> Check:
    """Equal texts, and some of them drafted. A GPU may round a near-tie either way; the CPU in f32 does not."""
    for pair in pairs:
        margin = pair.difference.margin if pair.difference else None
        if pair.difference and (backend == "cpu" or margin is None or abs(margin) > NEAR_TIE):
            raise UserError(
                f"self-test: llama-server {' '.join(ATTENTION.switch)} gives another greedy text than without the "
                f"drafter, for {pair.prompt!r}: {pair.difference}"
            )
    if not sum(pair.drafted.completion.timings.draft_n_accepted for pair in pairs):
        raise UserError("self-test: llama-server accepted no token of the tiny drafter, so it did not draft for real")
    speed = f"{tokens_per_step([pair.drafted for pair in pairs]):.1f} tokens per verify step"
    ties = [pair for pair in pairs if pair.difference]
    same = "the same greedy text as without it" + (f" but for {len(ties)} near-tie(s)" if ties else "")
    return Check("tiny pair", f"llama-server --dflash on the tiny pair: {same}, {speed}")
