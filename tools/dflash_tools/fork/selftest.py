"""Run what was built before calling it built.

Three checks: the programs start; the operators of the backend compute what the CPU computes; the tiny pair answers
through `llama-server --dflash` with the same greedy text as without the drafter. A check that this machine cannot make
(no GPU, no torch to convert the tiny target) is skipped with a sentence, never silently.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dflash_tools.errors import UserError, join_words
from dflash_tools.fork.workspace import Say, Workspace, quiet
from dflash_tools.server import LlamaServer

START = ("llama-server", "llama-cli", "llama-speculative-simple")
SMOKE_OPS = ("RMS_NORM",)  # quick, on every backend; patches/backend-ops names those that the series touches
PROMPTS = ("Once upon a time", "def add(a, b):", "The answer to the question is")
TOKENS = 48


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
) -> list[Check] | None:
    """Check the programs in `bin_dir` and return what was checked; each is told as it is done.

    With `only_if_more_than` (checks skipped earlier) nothing is run, and None returned, unless one of them is possible
    now. Raises UserError naming the program and what it did when a check fails.
    """
    no_start = _why_no_start(bin_dir, backend)
    reasons = {
        "start": no_start,
        "operators": no_start or _why_no_operators(bin_dir, backend),
        "tiny pair": no_start or _why_no_pair(ws),
    }
    if only_if_more_than is not None and all(reasons[str(c["name"])] for c in only_if_more_than):
        return None
    checks: list[Check] = []
    for name, check in {"start": _check_start, "operators": _check_operators, "tiny pair": _check_pair}.items():
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


def _check_operators(ws: Workspace, bin_dir: Path, backend: str) -> Check:
    device, ops = devices(bin_dir)[0], ",".join(operators(ws))
    status, text = _run([bin_dir / "test-backend-ops", "test", "-b", device, "-o", ops], 900)
    passed = re.findall(r"^\s*(\d+)/(\d+) tests passed", text, re.MULTILINE)
    if status or not passed or not int(passed[0][1]):
        failed = "\n".join(line for line in text.splitlines() if "FAIL" in line)
        raise UserError(f"self-test: test-backend-ops -b {device} -o {ops} failed\n{_last(failed or text)}")
    return Check("operators", f"{ops} on {device} equal the CPU's in {passed[0][0]} of {passed[0][1]} cases")


# The tiny pair


def _why_no_pair(ws: Workspace) -> str | None:
    pair = ws.root / "models" / "tiny" / "qwen3"
    if not (pair / "target" / "config.json").is_file() or not (pair / "dflash" / "config.json").is_file():
        return "drafting, because the checkout has no models/tiny/qwen3"
    missing = [name for name in ("numpy", "gguf", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return f"drafting, because this Python has no {join_words(missing)} (pip install the project first)"
    if (_pair_folder(ws) / "drafter.gguf").is_file() or importlib.util.find_spec("torch") is not None:
        return None
    return "drafting, because converting the tiny target needs torch ('pip install torch', then build-fork again)"


def _pair_folder(ws: Workspace) -> Path:
    """Where the converted pair is kept; another name when the pair or the converter changes."""
    digest = hashlib.sha256(ws.pin.commit.encode())
    sources = [ws.root / "models" / "tiny" / "qwen3", ws.root / "convert" / "dflash_convert"]
    for path in sorted(p for folder in sources for p in folder.rglob("*") if p.is_file()):
        if "eagle3" not in path.parts and "__pycache__" not in path.parts:
            digest.update(path.relative_to(ws.root).as_posix().encode() + b"\0" + path.read_bytes())
    return ws.made / "selftest" / digest.hexdigest()[:12]


def tiny_pair(ws: Workspace) -> tuple[Path, Path]:
    """The tiny attention pair as GGUF (target, drafter), converted once. Raises UserError when that fails."""
    from dflash_convert.cli import main as convert_dflash
    from dflash_convert.upstream import convert_target

    folder = _pair_folder(ws)
    with ws.lock("selftest"):
        if not (folder / "drafter.gguf").is_file():
            source = ws.root / "models" / "tiny" / "qwen3"
            with ws.scratch() as scratch:
                scratch.chmod(0o755)
                convert_target(source / "target", scratch / "target.gguf", "f16")
                words = [source / "dflash", "--target-model-dir", source / "target", "--outtype", "f16"]
                if convert_dflash([*map(str, words), "--outfile", str(scratch / "drafter.gguf")]):
                    raise UserError(
                        "self-test: the tiny drafter could not be converted (convert-dflash says why above)"
                    )
                shutil.rmtree(folder, ignore_errors=True)
                folder.parent.mkdir(exist_ok=True)
                scratch.rename(folder)
    return folder / "target.gguf", folder / "drafter.gguf"


def _check_pair(ws: Workspace, bin_dir: Path, backend: str) -> Check:
    target, drafter = tiny_pair(ws)
    extra = ["-c", "1024", "-np", "1", *(["-ngl", "99"] if backend != "cpu" else ["-t", "2"])]
    texts, drafted, accepted = [], 0, 0
    with ws.scratch() as scratch:
        for draft in (None, drafter):
            with LlamaServer(bin_dir, target, draft, extra=extra, log=scratch / "server.log") as server:
                answers = [server.completion(p, n_predict=TOKENS, temperature=0.0, ignore_eos=True) for p in PROMPTS]
            texts.append([a.text for a in answers])
            drafted = sum(a.timings.draft_n for a in answers)
            accepted = sum(a.timings.draft_n_accepted for a in answers)
    for prompt, plain, fast in zip(PROMPTS, *texts, strict=True):
        if plain != fast:
            raise UserError(
                f"self-test: llama-server --dflash gives another greedy text than without the drafter, for {prompt!r}\n"
                f"  without {plain!r}\n  with    {fast!r}"
            )
    if not accepted:
        raise UserError(f"self-test: llama-server --dflash drafted {drafted} tokens and accepted none on the tiny pair")
    share = f"{accepted} of {TOKENS * len(PROMPTS)} tokens came from the drafter"
    return Check("tiny pair", f"llama-server --dflash: same greedy text as without it, {share}")


def converted_pair(ws: Workspace) -> tuple[Path, Path] | None:
    """(target, drafter) of the tiny pair where a self-test has converted it, to show a command that can be typed."""
    folder = _pair_folder(ws)
    files = folder / "target.gguf", folder / "drafter.gguf"
    return files if all(f.is_file() for f in files) else None
