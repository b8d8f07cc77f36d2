"""The conditions a number was measured under, printed with every number."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from dflash_tools.errors import UserError

_VERSION = re.compile(r"version: (?P<version>.+)\n(?:built with (?P<compiler>.+)\n)?")
_DEVICE = re.compile(r"^\s+(\w+\d*): (.+?) \((\d+) MiB, \d+ MiB free\)$", re.MULTILINE)


def usable_cores() -> int:
    """Cores this process may run on, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine(bin_dir: Path, threads: int) -> str:
    """CPU with its threads, and the accelerators the binaries can use: what the work really ran on."""
    found = _DEVICE.findall(_run(bin_dir, "--list-devices"))
    devices = [f"{name} {memory} MiB" for device, name, memory in found if device != "BLAS"]
    return " + ".join([*devices, f"{cpu()}, {threads} of {usable_cores()} threads"])


def build(bin_dir: Path) -> str:
    """Version, commit and compiler as the binary names them."""
    found = _VERSION.search(_run(bin_dir, "--version"))
    if not found:
        return "unknown"
    return found["version"] + (f", {found['compiler']}" if found["compiler"] else "")


def cpu() -> str:
    """Its name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE)):
        return found[1].strip()
    return platform.processor() or platform.machine()


def _run(bin_dir: Path, argument: str) -> str:
    server = bin_dir / "llama-server"
    try:
        done = subprocess.run([server, argument], capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError) as cause:
        raise UserError(f"{server} {argument} failed ({cause}): run build-fork first") from cause
    return done.stdout + done.stderr
