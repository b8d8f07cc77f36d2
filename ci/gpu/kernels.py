"""What the CUDA graphs of a process consist of, from a file of kernels.cpp.

    ci/gpu/kernels.py FILE [--least 8] [--part NAME=REGEX ...]

A graph is shown when it was launched `--least` times: its nodes, the time from its first kernel's start to its last
one's end, the time kernels ran, and its kernels by time; medians over launches. `--part` adds up the kernels whose
names match.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

COPIES = {1: "copy to the device", 2: "copy to the host", 8: "copy on the device"}
_SHOWN = 30


@dataclass(frozen=True)
class Step:
    """One kernel, copy or fill: its name, start and duration in us."""

    name: str
    start: float
    duration: float


@dataclass(frozen=True)
class Graph:
    """All launches of graphs that run the same kernels in the same order."""

    launches: list[list[Step]]

    @property
    def span(self) -> float:
        return statistics.median(steps[-1].start + steps[-1].duration - steps[0].start for steps in self.launches)

    @property
    def busy(self) -> float:
        return statistics.median(sum(step.duration for step in steps) for steps in self.launches)

    def kernels(self) -> list[tuple[str, int, float]]:
        """(name, times in a launch, median us of a launch), the longest first."""
        counts: dict[str, int] = defaultdict(int)
        for step in self.launches[0]:
            counts[step.name] += 1
        times = {name: self.part(lambda other, name=name: other == name) for name in counts}
        return sorted(((name, counts[name], times[name]) for name in counts), key=lambda row: -row[2])

    def part(self, wanted: Callable[[str], object]) -> float:
        """Median us that the kernels of a launch ran whose names are `wanted`."""
        return statistics.median(sum(s.duration for s in steps if wanted(s.name)) for steps in self.launches)


def read(lines: Iterable[str]) -> tuple[str, list[Graph]]:
    """The command line, and the graphs, the one that took longest first. Lines of other kinds are ignored."""
    command, names, launches = "", {}, defaultdict(list)
    for line in lines:
        kind, _, rest = line.rstrip("\n").partition(" ")
        if kind == "#":
            command = rest
        elif kind == "N":
            number, _, name = rest.partition(" ")
            names[int(number)] = name
        elif kind in ("K", "C", "S"):
            start, duration, graph, launch, what = map(int, rest.split())
            if graph:
                launches[graph, launch].append((start, duration, kind, what))
    short = shorten(names)
    graphs = defaultdict(list)
    for steps in launches.values():
        named = [
            Step(
                short[what] if kind == "K" else COPIES.get(what, "copy") if kind == "C" else "fill",
                start / 1000,
                duration / 1000,
            )
            for start, duration, kind, what in sorted(steps)
        ]
        graphs[tuple(step.name for step in named)].append(named)
    return command, sorted(map(Graph, graphs.values()), key=lambda graph: -graph.span * len(graph.launches))


def shorten(names: dict[int, str]) -> dict[int, str]:
    """Kernels' names as people write them: demangled where c++filt is there, without arguments."""
    try:
        text = subprocess.run(["c++filt"], input="\n".join(names.values()), text=True, capture_output=True).stdout
        plain = text.split("\n")[: len(names)]
    except OSError:
        plain = list(names.values())
    return {
        number: re.sub(r"^void |\(anonymous namespace\)::|\(.*", "", name)[:90]
        for number, name in zip(names, plain, strict=True)
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=argparse.FileType("r", errors="replace"))
    parser.add_argument("--least", type=int, default=8, help="launches that make a graph worth showing (default 8)")
    parser.add_argument("--part", action="append", default=[], metavar="NAME=REGEX")
    args = parser.parse_args(words)
    command, graphs = read(args.file)
    print(command[:200])
    for graph in graphs:
        if len(graph.launches) < args.least:
            continue
        nodes, count = len(graph.launches[0]), len(graph.launches)
        print(f"{nodes} nodes, {count} launches, {graph.span:.0f} us from first to last, kernels {graph.busy:.0f} us")
        for part in args.part:
            name, _, pattern = part.partition("=")
            print(f"  {graph.part(re.compile(pattern).search):9.1f} us  {name}")
        for name, times, duration in graph.kernels()[:_SHOWN]:
            print(f"  {duration:9.1f} us {times:5d} x {name}")


if __name__ == "__main__":
    main()
