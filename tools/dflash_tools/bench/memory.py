"""Memory of a running llama-server by part, read from its log.

llama.cpp logs each buffer when it is allocated:

    load_tensors:        CUDA0 model buffer size =  4455.34 MiB
    llama_kv_cache:      CUDA0 KV buffer size =   576.00 MiB
    llama_memory_recurrent:  CUDA0 RS buffer size =   149.62 MiB
    llama_context:  CUDA_Host  output buffer size =     0.95 MiB
    sched_reserve:      CUDA0 compute buffer size =   304.75 MiB

What follows `loading draft model` is the drafter's. A context may plan its compute buffer again, larger; such a line
names no owner, and is the target's unless its last breakdown (logged at the end) says otherwise. With `--fit on` the
server first loads without allocating, so the log holds everything twice: use `--fit off`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_MIB = r"(?P<mib>\d+(?:\.\d+)?) MiB"
_BUFFER = re.compile(
    rf"(?P<source>\w+):\s+(?P<device>\S+)\s+(?P<part>model|KV|RS|output|compute) buffer size =\s+{_MIB}"
)
_BREAKDOWN = re.compile(
    r"\|\s+- (?P<device>\S+) \(.*?\)\s*\|\s*(?P<total>\d+) = (?P<free>\d+) \+ \(\s*\d+ =\s*(?P<model>\d+) \+\s*"
    r"(?P<context>\d+) \+\s*(?P<compute>\d+)\) \+\s*(?P<other>-?\d+) \|"
)
_DRAFTER = "loading draft model"
_READY = ("speculative decoding context initialized", "model loaded")
_PARTS = {"KV": "kv", "RS": "states"}
# Host memory that the device reads directly: pinned pages. Everything else that is no device is plain host memory.
_PINNED = "_Host"


@dataclass(frozen=True)
class Part:
    """`owner` is target or drafter, `kind` model, kv, states, output or compute, `place` device, pinned or host."""

    owner: str
    kind: str
    place: str
    mib: float

    @property
    def name(self) -> str:
        """As the reports name it, e.g. `target kv`, `drafter compute (pinned)`."""
        return f"{self.owner} {self.kind}" + ("" if self.place == "device" else f" ({self.place})")


def memory_parts(log: str) -> list[Part]:
    """Parts of a server's log, those of the same name summed over devices, in the order they first appear."""
    owner, ready = "target", False
    sizes: dict[tuple[str, str, str, str], float] = {}
    late: dict[str, float] = {}
    for line in log.splitlines():
        if _DRAFTER in line:
            owner = "drafter"
        elif any(words in line for words in _READY):
            ready = True
        elif found := _BUFFER.search(line):
            device, kind, mib = found["device"], _PARTS.get(found["part"], found["part"]), float(found["mib"])
            key = (owner, kind, device, found["source"])
            if kind != "compute":
                sizes[key] = sizes.get(key, 0.0) + mib
            elif ready:
                late[device] = mib
            else:
                sizes[key] = mib  # the last plan is the one in use
    for device, mib in late.items():
        _assign_late(sizes, device, mib, _final_compute(log, device))
    return _summed(sizes)


def _assign_late(sizes: dict[tuple[str, str, str, str], float], device: str, mib: float, final: float | None) -> None:
    """A compute buffer that was planned again after the start, whose owner the log does not name."""
    keys = {key[0]: key for key in sizes if key[1:3] == ("compute", device)}
    target_grew = final is None or abs(final - mib) < 1.0 or "drafter" not in keys
    owner = "target" if target_grew else "drafter"
    if owner in keys:
        sizes[keys[owner]] = mib


def _final_compute(log: str, device: str) -> float | None:
    found = [m for m in _BREAKDOWN.finditer(log) if m["device"] == device]
    return float(found[-1]["compute"]) if found else None


def _summed(sizes: dict[tuple[str, str, str, str], float]) -> list[Part]:
    sums: dict[tuple[str, str, str], float] = {}
    for (owner, kind, device, _), mib in sizes.items():
        key = (owner, kind, _place(device))
        sums[key] = sums.get(key, 0.0) + mib
    return [Part(*key, mib) for key, mib in sums.items()]


def _place(device: str) -> str:
    if device.endswith(_PINNED):
        return "pinned"
    return "host" if device.startswith(("CPU", "BLAS")) else "device"


def host_mib(pid: int) -> float | None:
    """MiB of host memory that a process has for itself, mapped files left out; None where /proc does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else None


def total(parts: Iterable[Part], place: str) -> float:
    """MiB of all parts in that place."""
    return sum(part.mib for part in parts if part.place == place)
