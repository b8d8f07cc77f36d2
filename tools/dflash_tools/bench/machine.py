"""What a measurement ran on: machine, cards, models. Names and sizes, no paths: a record may be published."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from dflash_tools import conditions
from dflash_tools.errors import UserError

_DIGEST_BYTES = 8 << 20


def machine() -> dict[str, Any]:
    """CPU, cores this process may use, memory, operating system, NVIDIA cards and their driver."""
    found: dict[str, Any] = {
        "cpu": conditions.cpu(),
        "cores": conditions.usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    cards = nvidia_query("name", "memory.total", "driver_version", "power.limit")
    if cards:
        found["gpus"] = [f"{name}, {memory} MiB, power limit {power} W" for name, memory, _, power in cards]
        found["driver"] = cards[0][2]
    return found


def nvidia_query(*fields: str) -> list[list[str]]:
    """One row of texts per NVIDIA card; empty when there is none, or no nvidia-smi."""
    if not (program := shutil.which("nvidia-smi")):
        return []
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return [row for row in rows if len(row) == len(fields)]


def model_file(path: Path) -> dict[str, Any]:
    """Name, size and a digest of a model: of its first and last 8 MiB, so that 20 GB do not take a minute."""
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            digest.update(file.read(_DIGEST_BYTES))
            file.seek(max(0, size - _DIGEST_BYTES))
            digest.update(file.read(_DIGEST_BYTES))
    except OSError as cause:
        raise UserError(f"{path}: cannot be read ({cause.strerror})") from cause
    return {"file": path.name, "bytes": size, "digest": digest.hexdigest()[:16]}
