"""Was the measurement disturbed? Watches the load of other processes and the clocks of the cards while it runs.

with Watch() as watch:
    ...
watch.disturbances()        # sentences, empty when nothing was seen
watch.clocks()              # of each card under load
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dflash_tools.bench.stats import median
from dflash_tools.conditions import usable_cores

# Share of all cores that others may use, and share of its median by which a busy card's clock may move, before it is
# said.
OTHERS_SHARE = 0.10
CLOCK_SHARE = 0.05
_BUSY_PERCENT = 50
_EVERY_MS = 1000
_GPU_FIELDS = (
    *("index", "utilization.gpu", "clocks.sm", "clocks.max.sm", "temperature.gpu", "power.draw"),
    "clocks_event_reasons.active",
)
# Bits of clocks_event_reasons that make a card slower than it could be (nvml.h, nvmlClocksEventReason*).
_REASONS = {
    0x04: "software power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


@dataclass(frozen=True)
class GpuSample:
    """One card at one moment; load in percent, clocks in MHz, temperature in degrees Celsius, power in watts."""

    card: int
    busy: float
    clock: float
    max_clock: float
    temperature: float
    power: float
    reasons: int

    @classmethod
    def parse(cls, line: str) -> GpuSample | None:
        """One line of nvidia-smi; None when a field is not told ("[N/A]")."""
        cells = [cell.strip() for cell in line.split(",")]
        try:
            return cls(int(cells[0]), *(float(cell) for cell in cells[1:6]), int(cells[6], 16))
        except (ValueError, IndexError):
            return None


@dataclass(frozen=True)
class CpuTimes:
    """Seconds of CPU so far, of the whole machine and of this process with its children, and seconds since the boot."""

    all: float
    own: float
    wall: float


class Watch:
    """Collects from entry to exit: two looks at /proc, and one nvidia-smi that prints a line per card and second.

    Children of this process count as the measurement's own, running or ended.
    """

    def __init__(self) -> None:
        self.gpu: list[GpuSample] = []
        self.before = self.after = CpuTimes(0.0, 0.0, 0.0)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Watch:
        self.before = cpu_times()
        if program := shutil.which("nvidia-smi"):
            command = [program, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"]
            try:
                self._process = subprocess.Popen(
                    [*command, "-lms", str(_EVERY_MS)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            except OSError:
                return self
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.after = cpu_times()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._reader is not None:
            self._reader.join(5.0)

    def _read(self) -> None:
        for line in self._process.stdout or ():
            if sample := GpuSample.parse(line):
                self.gpu.append(sample)

    def disturbances(self) -> list[str]:
        """Sentences about what was seen, empty when nothing was."""
        return [*cpu_disturbances(self.before, self.after, usable_cores()), *gpu_disturbances(self.gpu)]

    def clocks(self) -> dict[str, Any]:
        """Per card under load: lowest, median and highest clock, hottest, most power. Empty without a card."""
        found = {}
        for card, busy in _busy(self.gpu):
            clocks = [s.clock for s in busy]
            found[f"gpu{card}"] = {
                "sm_mhz": [min(clocks), median(clocks), max(clocks)],
                "max_celsius": max(s.temperature for s in busy),
                "max_watts": max(s.power for s in busy),
            }
        return found


def cpu_times() -> CpuTimes:
    """From /proc; all 0 on systems without it. Children that ended count as own, running ones are looked up."""
    stat, uptime = Path("/proc/stat"), Path("/proc/uptime")
    if not (stat.exists() and uptime.exists()):
        return CpuTimes(0.0, 0.0, 0.0)
    ticks = os.sysconf("SC_CLK_TCK")
    user, nice, system, _idle, _wait, irq, soft, *_ = map(int, stat.read_text().split("\n", 1)[0].split()[1:])
    own = sum(_process_ticks(pid) for pid in [os.getpid(), *_running_children(os.getpid())])
    wall = float(uptime.read_text().split(" ", 1)[0])
    return CpuTimes((user + nice + system + irq + soft) / ticks, own / ticks, wall)


def cpu_disturbances(before: CpuTimes, after: CpuTimes, cores: int) -> list[str]:
    """What other processes used, when that was more than a tenth of the machine."""
    wall = after.wall - before.wall
    if wall <= 0:
        return []
    others = ((after.all - before.all) - (after.own - before.own)) / wall
    if others <= OTHERS_SHARE * cores:
        return []
    return [f"other processes kept {others:.1f} of {cores} cores busy on average"]


def gpu_disturbances(samples: Sequence[GpuSample]) -> list[str]:
    """Throttling, and clocks that moved under load."""
    found = []
    for card, busy in _busy(samples):
        for bit, name in _REASONS.items():
            share = sum(bool(s.reasons & bit) for s in busy) / len(busy)
            if share > 0:
                hottest = max(s.temperature for s in busy)
                found.append(f"GPU {card}: {name} in {share:.0%} of the samples under load, up to {hottest:.0f} °C")
        clocks = [s.clock for s in busy]
        middle = median(clocks)
        if min(clocks) < (1 - CLOCK_SHARE) * middle or max(clocks) > (1 + CLOCK_SHARE) * middle:
            found.append(
                f"GPU {card}: its clock moved under load, from {min(clocks):.0f} to {max(clocks):.0f} MHz "
                f"(median {middle:.0f}, limit {max(s.max_clock for s in busy):.0f})"
            )
    return found


def _busy(samples: Sequence[GpuSample]) -> list[tuple[int, list[GpuSample]]]:
    """Each card that was under load, with its samples of that time: an idle card lowers its clock by itself."""
    busy = [s for s in samples if s.busy >= _BUSY_PERCENT]
    return [(card, [s for s in busy if s.card == card]) for card in sorted({s.card for s in busy})]


def _process_ticks(pid: int) -> int:
    """Own time and that of ended children, in clock ticks; 0 for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The name may hold spaces and brackets; the numbers begin after the last bracket, with field 3.
    fields = text[text.rindex(")") + 2 :].split()
    return sum(map(int, fields[11:15]))


def _running_children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = re.search(r"^PPid:\s+(\d+)$", (entry / "status").read_text(), re.MULTILINE)
            except OSError:
                continue
            if parent and int(parent[1]) == pid:
                found.append(int(entry.name))
    return found + [below for child in found for below in _running_children(child)]
