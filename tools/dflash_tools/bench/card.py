"""What the NVIDIA cards hold right now: memory in use, and the programs that use them."""

from __future__ import annotations

import shutil
import subprocess

from dflash_tools.bench.machine import nvidia_query


def used_mib() -> float | None:
    """MiB in use on all cards together, by every program; None where there is no card or it does not tell."""
    try:
        rows = [float(row[0]) for row in nvidia_query("memory.used")]
    except ValueError:
        return None
    return sum(rows) if rows else None


def strangers() -> list[str]:
    """A sentence when programs use a card. Asked before a measurement has started any of its own."""
    if not (program := shutil.which("nvidia-smi")):
        return []
    command = [program, "--query-compute-apps=pid", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    count = sum(1 for line in done.stdout.splitlines() if line.strip().isdigit())
    return [f"{count} other program(s) used the GPU when the measurement began"] if count else []
