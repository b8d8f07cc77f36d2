"""What the CUDA graphs of a process consist of, from a file of kernels.cpp.

    ci/gpu/kernels.py FILE [--least 8] [--part NAME=REGEX ...] [--idle] [--outside SECONDS]

A graph is shown when it was launched `--least` times: its nodes, the time from its first kernel's start to its last
one's end, the time kernels ran, and its kernels by time; medians over launches. `--part` adds up the kernels whose
names match. `--idle` tells how long the GPU did nothing between two launches of the first graph shown (of a server
with a drafter: in a round), and what it waited between; of a file with whole graphs, between graphs. `--outside` adds
up what ran outside of graphs, a prompt say, in the longest stretch without a pause of so many seconds.
"""

from __future__ import annotations

import argparse
import itertools
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
    """All launches of graphs that run the same kernels in the same order, of each what ran in the order of time."""

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


def read(lines: Iterable[str]) -> tuple[str, list[Graph], list[Step]]:
    """The command line, the graphs, the one that took longest first, and what ran outside of graphs, in order of time.

    Lines of other kinds are ignored.
    """
    command, names, launches, outside = "", {}, defaultdict(list), []
    for line in lines:
        kind, _, rest = line.rstrip("\n").partition(" ")
        if kind == "#":
            command = rest
        elif kind == "N":
            number, _, name = rest.partition(" ")
            names[int(number)] = name
        elif kind in ("K", "C", "S", "G"):
            start, duration, graph, launch, what = map(int, rest.split())
            what = graph if kind == "G" else what
            (launches[graph, launch] if graph else outside).append((start, duration, kind, what))
    short = shorten(names)

    def name(kind: str, what: int) -> str:
        if kind == "K":
            return short[what]
        return {"C": COPIES.get(what, "copy"), "S": "fill", "G": f"all of graph {what}"}[kind]

    def named(steps: list[tuple[int, int, str, int]]) -> list[Step]:
        return [Step(name(kind, what), start / 1000, duration / 1000) for start, duration, kind, what in sorted(steps)]

    graphs = defaultdict(list)
    for steps in map(named, launches.values()):
        graphs[tuple(step.name for step in steps)].append(steps)
    ranked = sorted(map(Graph, graphs.values()), key=lambda graph: -graph.span * len(graph.launches))
    return command, ranked, named(outside)


@dataclass(frozen=True)
class Idle:
    """From one launch of a graph to the next, us: all of it, that without anything on the GPU, and between what."""

    period: float
    total: float
    between: dict[tuple[str, str], float]


def idle(graph: Graph, graphs: Sequence[Graph], outside: Sequence[Step]) -> list[Idle]:
    """One for each launch of `graph` but the last, times in us."""
    labelled = [(step.start, step.duration, step.name) for step in outside]
    for number, other in enumerate(graphs, 1):
        label = f"graph {number} ({len(other.launches[0])} nodes)"
        labelled += [(step.start, step.duration, label) for steps in other.launches for step in steps]
    labelled.sort()
    starts = sorted(steps[0].start for steps in graph.launches)
    found, at = [], 0
    for begin, end in itertools.pairwise(starts):
        while labelled[at][0] < begin:
            at += 1
        between: dict[tuple[str, str], float] = defaultdict(float)
        busy_to, last = begin, labelled[at][2]
        while labelled[at][0] < end:
            start, duration, label = labelled[at]
            if start > busy_to:
                between[last, label] += start - busy_to
            if start + duration >= busy_to:
                busy_to, last = start + duration, label
            at += 1
        if end > busy_to:
            between[last, labelled[at][2]] += end - busy_to
        found.append(Idle(end - begin, sum(between.values()), dict(between)))
    return found


def stretch(outside: Sequence[Step], pause: float) -> list[Step]:
    """The steps of the longest run of steps with no more than `pause` us between them."""
    best: list[Step] = []
    run: list[Step] = []
    for step in outside:
        if run and step.start - (run[-1].start + run[-1].duration) > pause:
            run = []
        run.append(step)
        if len(run) > 1 and (not best or run[-1].start - run[0].start > best[-1].start - best[0].start):
            best = run
    return best


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
    parser.add_argument("--idle", action="store_true")
    parser.add_argument("--outside", type=float, metavar="SECONDS")
    args = parser.parse_args(words)
    command, graphs, outside = read(args.file)
    print(command[:200])
    shown = [graph for graph in graphs if len(graph.launches) >= args.least]
    seldom = [graph for graph in graphs if len(graph.launches) < args.least]
    if args.idle and shown:
        _print_idle(idle(shown[0], [*shown, *seldom], outside))
    if args.outside is not None:
        _print_stretch(stretch(outside, 1e6 * args.outside))
    for graph in shown:
        nodes, count = len(graph.launches[0]), len(graph.launches)
        print(f"{nodes} nodes, {count} launches, {graph.span:.0f} us from first to last, kernels {graph.busy:.0f} us")
        for part in args.part:
            name, _, pattern = part.partition("=")
            print(f"  {graph.part(re.compile(pattern).search):9.1f} us  {name}")
        _print_kernels(graph)


def _print_kernels(graph: Graph) -> None:
    for name, times, duration in graph.kernels()[:_SHOWN]:
        print(f"  {duration:9.1f} us {times:5d} x {name}")


def _print_idle(rounds: Sequence[Idle]) -> None:
    times = sorted(each.total for each in rounds)
    print(
        f"{statistics.median(each.period for each in rounds):.0f} us from launch to launch of graph 1, of which idle"
        f" {statistics.median(times):.1f} us (quarters {times[len(times) // 4]:.1f}, {times[len(times) * 3 // 4]:.1f})"
    )
    pairs = {pair for each in rounds for pair in each.between}
    medians = {pair: statistics.median(each.between.get(pair, 0.0) for each in rounds) for pair in pairs}
    for (before, after), gap in sorted(medians.items(), key=lambda row: -row[1])[:_SHOWN]:
        if gap > 0:
            print(f"  {gap:9.1f} us  {before} -> {after}")


def _print_stretch(steps: Sequence[Step]) -> None:
    if not steps:
        print("nothing ran outside of graphs")
        return
    once = Graph([list(steps)])
    print(f"outside of graphs: {once.span:.0f} us from first to last, kernels {once.busy:.0f} us")
    _print_kernels(once)


if __name__ == "__main__":
    main()
