"""Time of one step of the target by its number of rows, with llama-bench.

`llama-bench -p N -n 0` decodes a batch of N random tokens of one sequence, from the given depth on, and waits for it.
Of the N rows only the last one goes through the head, and nothing is sampled: it is the target's part of a verify,
without the head's work on the other rows. The depth is filled once and restored before each run, outside of the
measured time.

llama-bench itself runs each size once before. On a GPU that is not enough: the first counted run (at a depth the
second) records the CUDA graph that the others replay, and took 1.3 to 6 times as long on an H100. So the first two are
left out.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dflash_tools.errors import UserError

WARM_UPS = 2  # counted runs of llama-bench that are left out
_SECONDS = 600


@dataclass(frozen=True)
class Step:
    """All samples, in milliseconds, of a step of so many rows after so many tokens."""

    rows: int
    context: int
    samples_ms: tuple[float, ...]


def time_steps(bin_dir: Path, model: Path, rows: Sequence[int], repeats: int, extra: Sequence[str] = ()) -> list[Step]:
    """Time steps of each number of rows, `repeats` samples each. `extra` goes to llama-bench (`-d 8192`, `-ctk q8_0`).

    Raises UserError when llama-bench is missing, fails or runs longer than ten minutes.
    """
    program = bin_dir / "llama-bench"
    command = [
        *(str(program), "-m", str(model), "-p", ",".join(map(str, rows)), "-n", "0", "-r", str(WARM_UPS + repeats)),
        *("-ngl", "99", "-fa", "on", "-o", "jsonl", *extra),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True, errors="replace")
    except subprocess.CalledProcessError as cause:
        last = "\n".join(f"    {line}" for line in cause.stderr.strip().splitlines()[-5:])
        raise UserError(f"{program}: ended with status {cause.returncode}\n{last}") from cause
    except subprocess.TimeoutExpired as cause:
        raise UserError(f"{program}: not done after {_SECONDS} s; ask for fewer rows or a smaller depth") from cause
    except OSError as cause:
        raise UserError(f"{program}: cannot be run ({cause.strerror}); build-fork makes it") from cause
    found = [replace(s, samples_ms=s.samples_ms[WARM_UPS:]) for s in parse_steps(done.stdout, str(program))]
    if {step.rows for step in found} != set(rows):
        raise UserError(f"{program}: timed {sorted({s.rows for s in found})} rows, asked for {sorted(set(rows))}")
    return found


def parse_steps(text: str, where: str) -> list[Step]:
    """The steps in llama-bench's `-o jsonl` output. Raises UserError for lines that are none."""
    steps = []
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        try:
            found = json.loads(line)
            samples = tuple(float(ns) / 1e6 for ns in found["samples_ns"])
            steps.append(Step(int(found["n_prompt"]), int(found["n_depth"]), samples))
        except (ValueError, KeyError, TypeError) as cause:
            raise UserError(f"{where}: printed no test of llama-bench ({cause}): {line[:200]}") from cause
    return steps
