"""One case on one build: start the server, ask, and add what it says to the record."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dflash_tools.bench import card
from dflash_tools.bench.cases import Case, Probe, mean_tokens
from dflash_tools.bench.memory import host_mib, memory_parts
from dflash_tools.bench.record import PHASES, Record
from dflash_tools.bench.synth import FIRST_PLAIN
from dflash_tools.client import Completion, Counted
from dflash_tools.errors import UserError
from dflash_tools.server import LlamaServer

# The server's own defaults, said because floors depend on them.
BATCH, MICRO_BATCH = 2048, 512
_WARM_UP = Probe(64, 24, 1)
_START_SECONDS = 300.0
_ANSWER_SECONDS = 900.0
_GREEDY = {"temperature": 0.0, "ignore_eos": True, "cache_prompt": False}


@dataclass(frozen=True)
class Build:
    """A folder of programs under the name it has in the record, how its server is told to draft, and how to sample on
    the host where that is not what it does by itself.
    """

    name: str
    bin: Path
    switch: tuple[str, ...]
    host_sampling: tuple[str, ...] = ()

    @classmethod
    def find(cls, name: str, bin_dir: Path, depth: int) -> Build:
        """Reads the server's help: the fork has `--dflash`, upstream `--spec-type`. Raises UserError without either."""
        try:
            done = subprocess.run([bin_dir / "llama-server", "--help"], capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as cause:
            raise UserError(f"{bin_dir / 'llama-server'}: cannot be run ({cause}); build-fork makes it") from cause
        deep = ("--spec-draft-n-max", str(depth))
        host = ("--no-backend-sampling",) if "--no-backend-sampling" in done.stdout else ()
        if "\n--dflash" in done.stdout:
            return cls(name, bin_dir, ("--dflash", *deep), host)
        if "draft-dflash" in done.stdout:
            return cls(name, bin_dir, ("--spec-type", "draft-dflash", *deep), host)
        raise UserError(f"{bin_dir / 'llama-server'}: its help names neither --dflash nor draft-dflash")


@dataclass(frozen=True)
class Files:
    """The models of a shape, its vocabulary, and where the servers' logs go."""

    target: Path
    drafter: Path
    vocab: int
    logs: Path


def run_case(build: Build, case: Case, files: Files, depth: int, record: Record, extra: Sequence[str] = ()) -> None:
    """Serve one case and add its samples. Raises UserError when the server does not start or dies."""
    log = files.logs / f"{build.name}-{case.name}.log".replace(" ", "-").replace(",", "")
    before = card.used_mib()
    server = LlamaServer(
        build.bin, files.target, files.drafter if case.acceptance else None,
        switch=(*build.switch, "--spec-synth-len", f"{mean_tokens(case.acceptance, depth):g}"),
        extra=(*_arguments(build, case, depth), *extra), log=log, start_seconds=_START_SECONDS, timeout=_ANSWER_SECONDS,
    )  # fmt: skip
    with server:
        _ask(server, _WARM_UP, files.vocab, -1)
        for probe in case.probes:
            for sample in range(probe.samples):
                if case.slots == 1:
                    _add_request(record, build, case, probe, _ask(server, probe, files.vocab, sample))
                else:
                    _add_together(record, build, case, probe, server, files.vocab, sample)
        used, host = card.used_mib(), host_mib(server.pid or 0)
    on_card = None if before is None or used is None else used - before
    _add_memory(record, build, case, depth, log, {"all, by nvidia-smi": on_card, "all, private (host)": host})


def _arguments(build: Build, case: Case, depth: int) -> list[str]:
    """Both builds get the same, so that what differs is the build and not its defaults."""
    return [
        *("-c", str(case.slots * case.cells(depth)), "-np", str(case.slots), "--no-kv-unified"),
        *("-b", str(BATCH), "-ub", str(MICRO_BATCH)),
        *("-ngl", "99", "-fa", "on", "--fit", "off", "-ctk", case.kv, "-ctv", case.kv),
        *(("-ctkd", case.kv, "-ctvd", case.kv) if case.acceptance else ()),
        *(("--backend-sampling",) if case.sampler == "device" else build.host_sampling),
        *("--cache-ram", "0", "-lv", "4"),  # 4 logs the sizes of buffers, and nothing per step
    ]


def _ask(server: LlamaServer, probe: Probe, vocab: int, sample: int) -> Counted:
    """The same request for every build: same prompt, and same draws of the synthetic acceptance."""
    seed = 1000 * probe.prompt + sample + 1
    draw = random.Random(seed)
    prompt = [draw.randrange(FIRST_PLAIN, vocab) for _ in range(probe.prompt)]
    return server.counted(lambda: server.completion(prompt, n_predict=probe.out, seed=seed, **_GREEDY))


def _labels(case: Case, probe: Probe) -> dict[str, object]:
    return {
        "drafter": case.drafter,
        **({"acceptance": case.acceptance} if case.acceptance else {}),
        "context": 0 if probe.prompt <= _WARM_UP.prompt else probe.prompt,
        **_situation(case),
    }


def _situation(case: Case) -> dict[str, object]:
    return {"kv": case.kv, "slots": case.slots, "sampler": case.sampler}


def _add_request(record: Record, build: Build, case: Case, probe: Probe, run: Counted) -> None:
    timings, labels = run.completion.timings, _labels(case, probe)
    if probe.prompt > _WARM_UP.prompt and timings.prompt_ms:
        rate = 1000 * timings.prompt_n / timings.prompt_ms
        where = {"drafter": case.drafter, **_situation(case)}
        record.add("prefill_rate", build.name, "tok/s", [rate], tokens=probe.prompt, **where)
    if probe.out == 1 or not run.steps or not timings.predicted_ms:
        return
    if timings.predicted_n != probe.out:
        record.notes.append(f"{build.name}, {case.name}: {timings.predicted_n} tokens came of {probe.out} asked for")
    record.add("decode_rate", build.name, "tok/s", [1000 * run.tokens / timings.predicted_ms], **labels)
    record.add("round_ms", build.name, "ms", [timings.predicted_ms / run.steps], **labels)
    if case.acceptance:
        record.add("tokens_per_round", build.name, "tokens", [run.tokens / run.steps], **labels)
    if timings.spec and timings.spec.rounds:
        for phase in PHASES:
            mean = getattr(timings.spec, f"{phase}_ms") / timings.spec.rounds
            record.add("phase_ms", build.name, "ms", [mean], phase=phase, **labels)


def _add_together(
    record: Record, build: Build, case: Case, probe: Probe, server: LlamaServer, vocab: int, sample: int
) -> None:
    """Requests in all slots at once. All draw the same acceptance, so they verify together until they end together.

    tok/s are tokens of all slots over the time from the first start to the last end. A round is that of one slot, from
    one of its steps to its next, in which every other slot makes one too: mean over all steps of all slots. Its phases
    are those of an iteration of the server's loop, each counted once for all slots, where the server tells them.
    """
    gate = threading.Barrier(case.slots)
    before = server.metrics()

    def one(slot: int) -> tuple[Completion, float, float]:
        draw = random.Random(sample * 100 + slot)
        prompt = [draw.randrange(FIRST_PLAIN, vocab) for _ in range(probe.prompt)]
        gate.wait()
        start = time.perf_counter()
        answer = server.completion(prompt, n_predict=probe.out, seed=sample + 1, **_GREEDY)
        return answer, start + answer.timings.prompt_ms / 1000, time.perf_counter()

    with ThreadPoolExecutor(case.slots) as pool:
        done = list(pool.map(one, range(case.slots)))
    grown = {name: value - before.get(name, 0.0) for name, value in server.metrics().items()}
    add_shared(record, build, case, probe, [answer for answer, _, _ in done], grown)
    seconds = max(end for _, _, end in done) - min(start for _, start, _ in done)
    tokens = sum(max(0, answer.timings.predicted_n - 1) for answer, _, _ in done)
    record.add("decode_rate", build.name, "tok/s", [tokens / seconds], **_labels(case, probe))


def add_shared(
    record: Record, build: Build, case: Case, probe: Probe, answers: Sequence[Completion], grown: Mapping[str, float]
) -> None:
    """The round of several slots from their answers, and its phases from what the server's counters grew by."""
    labels = _labels(case, probe)
    # No stop word cuts an answer here, so every step gave its accepted drafts and one token more.
    runs = [Counted(answer, 0) for answer in answers]
    steps = sum(run.steps for run in runs)
    if not steps:
        return
    ms = sum(answer.timings.predicted_ms for answer in answers)
    record.add("round_ms", build.name, "ms", [ms / steps], **labels)
    if case.acceptance:
        record.add("tokens_per_round", build.name, "tokens", [sum(run.tokens for run in runs) / steps], **labels)
    if rounds := grown.get("spec_rounds_total"):
        for phase in PHASES:
            mean = 1000 * grown[f"spec_{phase}_seconds_total"] / rounds
            record.add("phase_ms", build.name, "ms", [mean], phase=phase, **labels)
        drafts = grown["spec_decode_num_drafts_total"] / rounds
        record.add("drafts_per_round", build.name, "drafts", [drafts], **labels)


def _add_memory(
    record: Record, build: Build, case: Case, depth: int, log: Path, totals: Mapping[str, float | None]
) -> None:
    """Parts from the log, and totals from the outside where the machine tells them."""
    if case.sampler == "host":
        return  # these rows are of sampling on the device, as the tables say
    labels = {"drafter": case.drafter, "size": case.slots * case.cells(depth), "kv": case.kv, "slots": case.slots}
    for part in memory_parts(log.read_text(errors="replace")):
        record.add("memory", build.name, "MiB", [part.mib], part=part.name, **labels)
    for name, mib in totals.items():
        if mib is not None:
            record.add("memory", build.name, "MiB", [mib], part=name, **labels)
