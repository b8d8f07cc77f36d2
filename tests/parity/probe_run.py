"""Build and run probe.cpp, and read what it wrote."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

SOURCE = Path(__file__).with_name("probe.cpp")
INCLUDES = ("common", "include", "ggml/include", "src", "vendor")
LIBRARIES = ("llama-common", "llama", "ggml", "ggml-base")


@dataclass(frozen=True)
class Round:
    """One draft: made after `n` committed tokens, from `logits` [rows, vocabulary]; `accepted` of it were kept.

    confidences [rows]: what a confidence head says of each row; empty without one
    """

    n: int
    draft: list[int]
    accepted: int
    logits: torch.Tensor
    confidences: torch.Tensor


@dataclass(frozen=True)
class Job:
    """One greedy speculative run.

    `features` [committed, K * Ht] are the target's states as the drafter got them; `reused` counts the drafter's graphs
    that did not have to be built again.
    """

    prompt: list[int]
    tokens: list[int]
    taps: list[int]
    features: torch.Tensor
    rounds: list[Round]
    reused: int


def build_probe(tree: Path, bin_dir: Path, folder: Path) -> Path:
    """Compile the probe with headers of `tree` and libraries of `bin_dir`; kept in `folder` until they change."""
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    libraries = [bin_dir / f"lib{name}{suffix}" for name in LIBRARIES]
    stamp = hashlib.sha256(SOURCE.read_bytes())
    for library in libraries:
        stamp.update(f"{library.resolve()} {library.stat().st_mtime_ns}".encode())
    probe = folder / f"probe-{stamp.hexdigest()[:16]}"
    if not probe.exists():
        unfinished = probe.with_suffix(f".{os.getpid()}")
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        inputs = [str(SOURCE), *(f"-I{tree / name}" for name in INCLUDES), *map(str, libraries)]
        command = [*compiler, "-std=c++17", "-O1", *inputs, f"-Wl,-rpath,{bin_dir.resolve()}"]
        done = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-4000:]}"
        unfinished.rename(probe)
    return probe


def run_probe(
    probe: Path, work: Path, prompts: Sequence[Sequence[int]], n_predict: int, options: Sequence[str]
) -> list[Job]:
    """Run all prompts through one process. `options` are llama.cpp's: models, engine, cache types."""
    work.mkdir(parents=True)
    jobs = work / "jobs"
    jobs.write_text("".join(f"{n_predict} {' '.join(map(str, prompt))}\n" for prompt in prompts))
    env = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_ARG_")}
    command = [str(probe), str(jobs), str(work), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{(done.stdout + done.stderr)[-4000:]}"
    return [_read_job(work / str(i), list(prompt)) for i, prompt in enumerate(prompts)]


def _read_job(stem: Path, prompt: list[int]) -> Job:
    found = json.loads(stem.with_suffix(".json").read_text())
    features = np.fromfile(stem.with_suffix(".features"), np.float32)
    logits = torch.from_numpy(np.fromfile(stem.with_suffix(".logits"), np.float32)).view(-1, found["n_vocab"])
    assert sum(r["rows"] for r in found["rounds"]) == len(logits), f"{stem}.logits does not hold the rows it announces"
    confidences = torch.from_numpy(np.fromfile(stem.with_suffix(".confidences"), np.float32))
    rounds, row = [], 0
    for r in found["rounds"]:
        rows = slice(row, row + r["rows"])
        rounds.append(Round(r["n"], r["draft"], r["accepted"], logits[rows], confidences[rows]))
        row += r["rows"]
    committed = len(found["tokens"]) - 1
    features = torch.from_numpy(features).view(committed, -1)
    return Job(prompt, found["tokens"], found["taps"], features, rounds, found["reused"])
