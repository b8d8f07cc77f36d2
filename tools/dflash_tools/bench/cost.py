"""`bench-dflash cost`: what a round costs at real shapes, part by part, on the fork and on another build in turn.

Weights are random, so the text is noise, acceptance is drawn (`--spec-synth-len`), and only times and sizes mean
something. Builds alternate within each case (fork, baseline; next turn baseline, fork), so that what drifts on the
machine drifts under both.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dflash_tools import conditions
from dflash_tools.bench import card, machine
from dflash_tools.bench.bandwidth import copy_rates
from dflash_tools.bench.cases import FULL, LENGTHS, ROWS, Case, Choices, Probe, mean_tokens, plan, quick
from dflash_tools.bench.cost_table import FLOOR
from dflash_tools.bench.floor import Load, floor_ms, prefill_bytes, round_bytes, target_bytes
from dflash_tools.bench.mixes import MIXES
from dflash_tools.bench.progress import Progress
from dflash_tools.bench.record import BROKEN_OFF, FAILED, PLAIN, Record, Series
from dflash_tools.bench.serving import MICRO_BATCH, Build, Files, run_case
from dflash_tools.bench.shapes import SHAPES, find_shape
from dflash_tools.bench.stats import median
from dflash_tools.bench.steady import Visits
from dflash_tools.bench.steps import WARM_UPS, time_steps
from dflash_tools.bench.synth import Model, drafter_model, make_model, target_model
from dflash_tools.bench.watch import Watch
from dflash_tools.errors import UserError
from dflash_tools.fork.build import bin_dir

FORK, BASELINE = "fork", "upstream"
_TURNS = 3
_STEP_REPEATS = 9
_PATIENCE = 3  # cases that fail before a build that could do none is given up
_SLOWER = 0.35  # power of the ratio of lengths by which a longer prompt is read more slowly; a guess on the safe side


def add_cost_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench-dflash cost`, without those every sub-command has."""
    parser.add_argument("--shape", required=True, help=f"one of {', '.join(SHAPES)}")
    parser.add_argument("--bin", type=Path, metavar="DIR", help="programs to measure (default: of the last build-fork)")
    parser.add_argument("--baseline", type=Path, metavar="DIR", help="programs to measure in turn with them")
    parser.add_argument("--baseline-name", default=BASELINE, metavar="NAME", help=f"their name (default {BASELINE})")
    parser.add_argument("--mix", choices=MIXES, help="quantisation of the target (default: the usual one of the shape)")
    parser.add_argument("--drafter-mix", choices=MIXES, default="q8_0", help="and of the drafter (default q8_0)")
    parser.add_argument("--depth", type=_count, help="tokens to draft (default: the trained block less one)")
    parser.add_argument(
        "--cases", metavar="REGEX", help="only the cases in whose names it is found, e.g. 'slots|KV|context 32768'"
    )
    parser.add_argument("--quick", action="store_true", help="only what shows a round and its parts")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop in time: cut cases and repeats to fit")
    parser.add_argument("--turns", type=_count, default=_TURNS, help=f"times through all cases (default {_TURNS})")
    parser.add_argument(
        "--visits", type=_count, default=2, help="times the first two cases are measured before all others (default 2)"
    )
    parser.add_argument("--samples", type=_count, default=3, help="requests of a kind in one turn (default 3)")
    parser.add_argument("--rounds", type=_count, default=48, help="rounds in one request (default 48)")
    parser.add_argument(
        "--lengths", type=_words, default=LENGTHS, metavar="L,..",
        help=f"acceptance lengths, the target's token included (default {','.join(LENGTHS)})",
    )  # fmt: skip
    parser.add_argument("--rows", type=_counts, default=ROWS, metavar="N,..", help="rows of a target step")
    parser.add_argument(
        "--contexts", type=_counts, default=(8192, 32768), metavar="N,..",
        help="depths besides 0 (default 8192,32768; 131072 takes minutes)",
    )  # fmt: skip
    parser.add_argument("--prefill", type=_counts, default=(2048, 8192, 32768), metavar="N,..", help="prompt lengths")
    parser.add_argument("--kv", type=_words, default=("f16", "q8_0"), metavar="T,..", help="types of the KV cache")
    parser.add_argument("--slots", type=_counts, default=(1, 2, 4), metavar="N,..", help="requests at once")
    parser.add_argument(
        "--samplers", type=_words, default=("device", "host"), metavar="S,..",
        help="where the target is sampled: device, host (default both)",
    )  # fmt: skip
    parser.add_argument("--models", type=Path, metavar="DIR", help="where models are made (default .bench/models)")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the servers' logs here")
    parser.add_argument("--threads", type=_count, metavar="N", help="threads of the CPU (default: the programs' own)")
    parser.add_argument(
        "--server-option", action="append", default=[], metavar="WORDS", help="more options for every llama-server"
    )


def run_cost(args: argparse.Namespace) -> Record:
    """Measure as the arguments say. Raises UserError when nothing could be measured; what was, is kept when it is
    interrupted, and the notes say so.
    """
    started = time.time()
    shape = find_shape(args.shape)
    depth = args.depth or shape.drafter.block - 1
    choices = _choices(args, depth)
    cases = _cases(args.cases, choices)
    builds = [Build.find(FORK, args.bin or bin_dir(), depth)]
    if args.baseline:
        builds.append(Build.find(args.baseline_name, args.baseline, depth))
    target, drafter = target_model(shape, args.mix or shape.mix), drafter_model(shape, args.drafter_mix)
    record = Record("cost", _conditions(args, target, drafter, builds, depth, started))
    others = card.strangers()
    folder = args.models or Path(".bench") / "models"
    with tempfile.TemporaryDirectory(prefix="bench-dflash-") as scratch:
        files = Files(
            make_model(target, folder, _say), make_model(drafter, folder, _say), shape.vocab, args.logs or Path(scratch)
        )
        threads = ["-t", str(args.threads)] if args.threads else []
        options = [*threads, *(word for words in args.server_option for word in shlex.split(words))]
        with Watch() as watch:
            _add_bandwidth(record, builds[0])
            study = Study(builds, files, record, depth, options, threads)
            study.run(cases, args.turns, started + 60 * args.minutes if args.minutes else None)
    record.notes += study.notes()
    if not any(series.name in ("decode_rate", "step_ms") for series in record.series):
        raise UserError("nothing could be measured:\n" + "\n".join(record.notes))
    _add_floors(record, args.shape, target, drafter, depth)
    record.conditions["seconds"] = round(time.time() - started)
    record.conditions["disturbances"] = [*others, *watch.disturbances(), *study.visits.disturbances()]
    record.conditions["host"] = {"clocks": watch.clocks()}
    record.notes += [f"disturbed: {what}" for what in record.conditions["disturbances"]]
    return record


@dataclass
class Study:
    """Runs cases on builds in turn until the turns or the time are used up."""

    builds: Sequence[Build]
    files: Files
    record: Record
    depth: int
    server_options: Sequence[str] = ()
    bench_options: Sequence[str] = ()
    seconds: dict[Case, float] = field(default_factory=dict)
    failed: dict[tuple[Case, str], str] = field(default_factory=dict)
    useless: set[str] = field(default_factory=set)
    left_out: list[Case] = field(default_factory=list)
    turns: int = 0
    stopped: str = ""
    bar: Callable[[int], Progress] = Progress
    progress: Progress = field(init=False)
    visits: Visits = field(init=False)

    def __post_init__(self) -> None:
        self.progress = self.bar(0)
        self.visits = Visits(self.record)

    def run(self, cases: Sequence[Case], turns: int, deadline: float | None) -> None:
        """`deadline` is in seconds since the epoch. A case that cannot end before it is not begun."""
        self.progress = self.bar(sum(self._starts(case, turn) for turn in range(turns) for case in cases))
        try:
            self._turns(cases, turns, deadline)
        except KeyboardInterrupt:
            if not self.seconds:
                raise
            self.stopped = "interrupted"
        finally:
            self.progress.end()

    def _turns(self, cases: Sequence[Case], turns: int, deadline: float | None) -> None:
        for turn in range(turns):
            ran = 0
            for case in cases:
                visits = self._visits(case, turn)
                late = deadline is not None and time.time() + visits * self._expected(case) > deadline
                if late and not turn:
                    self.left_out.append(case)
                if late or case in self.left_out:
                    self.progress.total -= self._starts(case, turn)
                    continue
                for visit in range(visits):
                    start = time.time()
                    for build in self.order(turn + visit):
                        self._one(build, case)
                        self.visits.count()
                        self.progress.step(f"{build.name}, {case.name}")
                    self.seconds[case] = max(self.seconds.get(case, 0.0), time.time() - start)
                ran += 1
                self.progress.say(_line(f"turn {turn + 1}: {case.name}: {self.seconds[case]:.0f} s"))
            self.turns += ran == len(cases) - len(self.left_out)
            if not ran:
                break

    def _visits(self, case: Case, turn: int) -> int:
        return case.visits if not turn else 1

    def _starts(self, case: Case, turn: int) -> int:
        return self._visits(case, turn) * len(self.builds)

    def order(self, turn: int) -> Sequence[Build]:
        """ABBA: who goes first changes with each turn."""
        return self.builds if turn % 2 == 0 else list(reversed(self.builds))

    def notes(self) -> list[str]:
        """What was not measured, and why."""
        notes = [f"{BROKEN_OFF}{self.stopped}"] if self.stopped else []
        notes += [f"{FAILED}{build}, {case.name}: not measured: {why}" for (case, build), why in self.failed.items()]
        notes += [f"{FAILED}{build}: nothing else was asked of it" for build in sorted(self.useless)]
        if self.left_out:
            notes.append("no time was left for: " + "; ".join(case.name for case in self.left_out))
        return notes

    def _expected(self, case: Case) -> float:
        """Seconds: what the case took before, or what its requests should take and the most that starting took."""
        if case in self.seconds:
            return self.seconds[case]
        overheads = [
            took - self._requests(other) for other, took in self.seconds.items() if bool(other.rows) == bool(case.rows)
        ]
        return 1.1 * (max(overheads, default=0.0) + self._requests(case))

    def _requests(self, case: Case) -> float:
        """Seconds that the requests of all builds should take, at the slowest rates seen so far. A prompt longer than
        any before is taken to be read more slowly.
        """
        prompts = list(self.record.select("prefill_rate", drafter=case.drafter))
        rates = {int(s.labels["tokens"]): min(s.values) for s in prompts}
        steps = [max(s.values) for s in self.record.select("round_ms", drafter=case.drafter)]
        token_ms = max(steps, default=0.0) / mean_tokens(case.acceptance, self.depth)
        seconds = 0.0
        for probe in case.probes if not case.rows else [Probe(case.context, 1, 1)]:
            if rates:
                longer = max(1.0, probe.prompt / max(rates)) ** _SLOWER
                seconds += probe.samples * longer * probe.prompt / min(rates.values())
            seconds += probe.samples * probe.out * token_ms / 1000
        return len(self.builds) * seconds

    def _one(self, build: Build, case: Case) -> None:
        if (case, build.name) in self.failed or build.name in self.useless:
            return
        try:
            if case.rows:
                self._steps(build, case)
            else:
                run_case(build, case, self.files, self.depth, self.record, self.server_options)
        except UserError as error:
            self.failed[case, build.name] = str(error).splitlines()[0]
            self.progress.say(_line(f"{build.name}, {case.name}: {error}"))
            if not any(s.build == build.name for s in self.record.series if s.name in ("decode_rate", "step_ms")):
                failures = sum(name == build.name for _, name in self.failed)
                self.useless |= {build.name} if failures >= _PATIENCE else set()

    def _steps(self, build: Build, case: Case) -> None:
        options = ["-d", str(case.context), "-ctk", case.kv, "-ctv", case.kv, *self.bench_options]
        for step in time_steps(build.bin, self.files.target, case.rows, _STEP_REPEATS, options):
            labels = {"rows": step.rows, "context": step.context, "kv": case.kv, "slots": 1}
            self.record.add("step_ms", build.name, "ms", step.samples_ms, **labels)


def _add_bandwidth(record: Record, build: Build) -> None:
    try:
        record.add("copy_rate", build.name, "GB/s", copy_rates(build.bin))
    except UserError as error:
        record.notes.append(f"no memory floor is given: {error}")


def _add_floors(record: Record, name: str, target: Model, drafter: Model, depth: int) -> None:
    """The floor of everything that was timed, under the name of the build `memory floor`: for a rate, the most that the
    memory would allow.
    """
    rates = next(record.select("copy_rate"), None)
    if rates is None:
        return
    shape, copy_rate = find_shape(name), median(rates.values)

    def milliseconds(series: Series) -> float:
        labels = series.labels
        plain = labels.get("drafter", PLAIN) == PLAIN
        load = Load(context=int(labels.get("context", 0)), slots=int(labels["slots"]), kv=labels["kv"])
        if series.name == "prefill_rate":
            whole = replace(load, context=int(labels["tokens"]))
            moved = prefill_bytes(shape, target, None if plain else drafter, whole, MICRO_BATCH)
        elif plain:
            rows = int(labels.get("rows", load.slots))
            moved = target_bytes(shape, target, replace(load, rows=rows))
        else:
            moved = round_bytes(shape, target, drafter, replace(load, rows=load.slots * (depth + 1)))
        return floor_ms(moved, copy_rate)

    def tokens(series: Series) -> float:
        if series.name == "prefill_rate":
            return float(series.labels["tokens"])
        drawn = next(record.select("tokens_per_round", **series.labels), None)
        return int(series.labels["slots"]) * (median(drawn.values) if drawn else 1.0)

    for series in [s for s in record.series if s.name in ("step_ms", "round_ms", "decode_rate", "prefill_rate")]:
        if not any(True for _ in record.select(series.name, FLOOR, **series.labels)):
            floor = milliseconds(series)
            value = 1000 * tokens(series) / floor if series.name.endswith("_rate") else floor
            record.add(series.name, FLOOR, series.unit, [value], **series.labels)


def _choices(args: argparse.Namespace, depth: int) -> Choices:
    for length in args.lengths:
        if length != FULL and not (re.fullmatch(r"\d+(\.\d+)?", length) and float(length) >= 1):
            raise UserError(f"--lengths: {length!r} is neither {FULL!r} nor a number from 1")
    if bad := set(args.samplers) - {"device", "host"}:
        raise UserError(f"--samplers: {sorted(bad)[0]!r} is neither device nor host")
    choices = Choices(
        depth, args.rounds, args.samples, args.lengths, args.rows, args.contexts, args.prefill, args.kv, args.slots,
        args.samplers, args.visits,
    )  # fmt: skip
    chosen = quick(choices) if args.quick else choices
    return replace(chosen, lengths=tuple(n for n in chosen.lengths if n == FULL or float(n) <= depth))


def _cases(pattern: str | None, choices: Choices) -> list[Case]:
    cases = plan(choices)
    try:
        chosen = [case for case in cases if re.search(pattern or "", case.name)]
    except re.error as cause:
        raise UserError(f"--cases: {pattern!r} is no regular expression ({cause})") from None
    if not chosen:
        raise UserError(f"--cases: {pattern!r} is in none of the names: " + "; ".join(case.name for case in cases))
    return chosen


def _conditions(
    args: argparse.Namespace, target: Model, drafter: Model, builds: Sequence[Build], depth: int, started: float
) -> dict[str, object]:
    return {
        "shape": args.shape,
        "target": {"mix": args.mix or find_shape(args.shape).mix, "bytes": target.weights},
        "drafter": {"mix": args.drafter_mix, "bytes": drafter.weights, "depth": depth},
        "weights": "random",
        "temperature": 0,
        "server options": args.server_option,
        "rounds": args.rounds,
        "micro-batch": MICRO_BATCH,
        "warm-up steps": WARM_UPS,
        "threads": args.threads or "default",
        "builds": {build.name: conditions.build(build.bin) for build in builds},
        "machine": machine.machine(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "command": shlex.join(["bench-dflash", *sys.argv[1:]]),
    }


def _say(line: str) -> None:
    print(_line(line), file=sys.stderr, flush=True)


def _line(text: str) -> str:
    return f"bench-dflash: {text}"


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(word) for word in _words(text))


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,6}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)
