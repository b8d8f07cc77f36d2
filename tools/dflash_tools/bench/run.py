"""Run a study: every prompt on every side, interleaved, and all that was seen into one record."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dflash_tools import conditions
from dflash_tools.bench.arms import CHAT, Arm, LlamaArm, PromptRefusedError, Reply, Request, Setting, rotated
from dflash_tools.bench.equality import compare_answers
from dflash_tools.bench.machine import machine, model_file
from dflash_tools.bench.progress import Progress
from dflash_tools.bench.prompts import Prompt, Sources, digest, suite
from dflash_tools.bench.record import BROKEN_OFF, PHASES, Record
from dflash_tools.bench.sides import Side, sides_of
from dflash_tools.bench.stats import scatter
from dflash_tools.bench.study import Study
from dflash_tools.bench.watch import Watch
from dflash_tools.errors import UserError
from dflash_tools.fork.build import bin_dir as fork_bin_dir

# Repeats of one request that scatter by more than this share (quartiles over median) are said to.
NOISY = 0.05
# What a server tells of its model, and the names of these conditions.
_TOLD = {"ftype": "type", "n_params": "parameters"}


@dataclass
class Measured:
    """Replies of each side to each request, in the order of the passes, and what the sides said of their models."""

    replies: dict[tuple[str, Setting, Prompt], list[Reply]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    stopped: str = ""

    def sort(self, sides: Sequence[Side], requests: Sequence[Request]) -> None:
        """Replies in the order of sides and requests, whoever was asked first."""
        order = [(side.name, request.setting, request.prompt) for side in sides for request in requests]
        self.replies = {place: self.replies[place] for place in order if place in self.replies}


def run_study(study: Study, progress: Callable[[int], Progress] = Progress) -> Record:
    """Measure. Raises UserError when nothing could be measured; a study that breaks off later says so in its notes."""
    for path in [study.target, *(drafter.path for drafter in study.drafter)]:
        if path is not None and not path.is_file():
            raise UserError(f"{path}: is no file; a model to measure is a GGUF file")
    sources = Sources(study.work / "packages", study.long_tokens)
    prompts = _prompts(study, sources)
    sides = sides_of(study)
    requests = _requests(study, prompts)
    record = Record("run", _conditions(study, sides, prompts))
    started = time.monotonic()
    with Watch() as watch:
        measured = _Run(study, sides, requests, progress).measure()
    if not measured.replies:
        refused = "; ".join(f"{what}: {why}" for what, why in measured.left_out.items())
        raise UserError(f"no prompt was answered by every side: {refused[:500]}")
    measured.sort(sides, requests)
    record.conditions["target"] |= next(iter(measured.models.values()), {})
    record.conditions |= {"seconds": round(time.monotonic() - started, 1), "host": {"clocks": watch.clocks()}}
    for (name, setting, prompt), replies in measured.replies.items():
        _add(record, name, {"suite": prompt.suite, "prompt": prompt.id, **setting.labels()}, replies)
    by_name = {side.name: side for side in sides}
    baselines = {side.name: side.baseline for side in sides}
    try:
        compare_answers(record, measured.replies, baselines, lambda name: by_name[name].open())
    except KeyboardInterrupt:
        measured.stopped = measured.stopped or "interrupted before all texts were compared"
    record.notes += _idle(measured)
    record.conditions["disturbances"] = [*watch.disturbances(), *_noise(record)]
    if measured.stopped:
        record.notes.append(f"{BROKEN_OFF}{measured.stopped}")
    record.notes += [f"left out: {what}: {why}" for what, why in measured.left_out.items()]
    record.notes += [f"disturbed: {what}" for what in record.conditions["disturbances"]]
    return record


def _prompts(study: Study, sources: Sources) -> dict[str, list[Prompt]]:
    prompts: dict[str, list[Prompt]] = {}
    for name in study.suites:
        some = suite(name, study.prompts, sources)
        if some[0].suite in prompts:
            raise UserError(f"suites: {name}: there is another suite of the name {some[0].suite}")
        prompts[some[0].suite] = some
    return prompts


def _requests(study: Study, prompts: dict[str, list[Prompt]]) -> list[Request]:
    return [
        Request(prompt, setting, study.max_tokens, study.seed, study.sampling, study.ignore_eos)
        for setting in study.settings()
        for some in prompts.values()
        for prompt in some
        if setting.template == CHAT or prompt.raw is not None
    ]


class _Run:
    """The passes over all requests."""

    def __init__(
        self, study: Study, sides: Sequence[Side], requests: Sequence[Request], progress: Callable[[int], Progress]
    ) -> None:
        self.study, self.sides, self.requests = study, sides, requests
        if not requests:
            raise UserError("no prompt of the suites can be asked raw; add the chat template")
        self.progress = progress(len(sides) * len(requests) * study.repeats)
        self.measured = Measured()

    def measure(self) -> Measured:
        passes = self._by_prompt if self.study.interleave == "prompt" else self._by_server
        try:
            passes()
        except (UserError, KeyboardInterrupt) as cause:
            if not self.measured.replies:
                raise
            self.measured.stopped = str(cause) or "interrupted"
        finally:
            self.progress.end()
        return self.measured

    def _by_prompt(self) -> None:
        with ExitStack() as stack:
            arms = [self._opened(stack, side) for side in self.sides]
            for turn in range(self.study.repeats):
                for number, request in enumerate(self.requests):
                    for arm in rotated(arms, turn + number):
                        self._ask(arm, request, turn)

    def _by_server(self) -> None:
        for turn in range(self.study.repeats):
            for side in rotated(self.sides, turn):
                with ExitStack() as stack:
                    arm = self._opened(stack, side)
                    for request in self.requests:
                        self._ask(arm, request, turn)

    def _opened(self, stack: ExitStack, side: Side) -> Arm:
        arm = stack.enter_context(side.open())
        if isinstance(arm, LlamaArm) and side.name not in self.measured.models:
            told = arm.client.model()
            self.measured.models[side.name] = {key: told[name] for name, key in _TOLD.items() if name in told}
        warm = 0
        for request in self.requests:
            while warm < self.study.warmup:
                try:
                    arm.ask(request)
                except PromptRefusedError:
                    break
                warm += 1
        return arm

    def _ask(self, arm: Arm, request: Request, turn: int) -> None:
        key = request.prompt.key
        what = f"{arm.name}: {request.prompt.suite}, {request.setting}"
        if key not in self.measured.left_out:
            # Sampled answers differ from pass to pass, the same way on every side.
            seed = request.seed if request.setting.greedy else request.seed + turn
            try:
                reply = arm.ask(replace(request, seed=seed))
            except PromptRefusedError as cause:
                # A prompt that one side refuses (too long for its context) tells nothing about any of them.
                self.measured.left_out[key] = f"{arm.name}: {cause}"
                for place in [p for p in self.measured.replies if p[2].key == key]:
                    del self.measured.replies[place]
            else:
                self.measured.replies.setdefault((arm.name, request.setting, request.prompt), []).append(reply)
        self.progress.step(what)


def _add(record: Record, build: str, labels: dict[str, str], replies: Sequence[Reply]) -> None:
    """The samples of one request on one side: what is unknown gets no series."""

    def add(name: str, unit: str, values: Sequence[float | None], **more: object) -> None:
        if values and all(value is not None for value in values):
            record.add(name, build, unit, values, **labels, **more)

    def quotient(amount: float | None, cost: float | None) -> float | None:
        return None if amount is None or not cost else 1000 * amount / cost

    add("tokens", "count", [r.tokens for r in replies])
    add("steps", "count", [r.steps for r in replies])
    for name in ("drafted", "accepted", "rounds", "prompt_tokens"):
        add(name, "count", [getattr(r, name) for r in replies])
    for name in ("ttft_ms", "stream_ms", "decode_ms", "prompt_ms"):
        add(name, "ms", [getattr(r, name) for r in replies])
    add("decode_rate", "tok/s", [quotient(r.decoded, r.decode_ms) for r in replies])
    add("stream_rate", "tok/s", [quotient(r.decoded, r.stream_ms) for r in replies])
    for position in range(max((len(r.accepted_per_pos or ()) for r in replies), default=0)):
        counts = [(r.accepted_per_pos or ())[position : position + 1] or (None,) for r in replies]
        add("accepted_at", "count", [count[0] for count in counts], position=position + 1)
    if all(r.spec and r.spec.rounds for r in replies):
        for phase in PHASES:
            add("phase_ms", "ms", [getattr(r.spec, f"{phase}_ms") / r.spec.rounds for r in replies], phase=phase)
        add("round_ms", "ms", [r.spec.round_ms / r.spec.rounds for r in replies])


def _idle(measured: Measured) -> list[str]:
    """Sides that have a drafter which never drafted: what they show is plain decoding."""
    drafted: dict[str, int] = {}
    for (name, _, _), replies in measured.replies.items():
        for reply in replies:
            if reply.drafted is not None:
                drafted[name] = drafted.get(name, 0) + reply.drafted
    return [f"{name}: nothing was drafted in any answer" for name, count in drafted.items() if not count]


def _noise(record: Record) -> list[str]:
    """Sides whose repeats of the same greedy request scatter much: that is the machine, not the request."""
    found = []
    for build in record.builds():
        values = [
            scatter(s.values)
            for s in record.select("decode_rate", build, temperature="0")
            if len(s.values) >= 3
        ]  # fmt: skip
        noisy = sum(value > NOISY for value in values)
        if noisy > len(values) / 2:
            found.append(
                f"{build}: repeats of the same greedy request scatter by more than {NOISY:.0%} for {noisy} of "
                f"{len(values)} prompts"
            )
    return found


def _conditions(study: Study, sides: Sequence[Side], prompts: dict[str, list[Prompt]]) -> dict[str, Any]:
    """All that is known before; asked for first, so that nothing of it can fail after an hour of measuring."""
    found: dict[str, Any] = {
        "target": model_file(study.target) if study.target else {},
        "drafters": {
            d.name: {**model_file(d.path), "switch": shlex.join(d.switch), "options": shlex.join(d.options)}
            for d in study.drafter
        },
        "servers": {s.name: s.model or "its only model" for s in study.server},
        "baselines": {side.name: side.baseline for side in sides if side.baseline},
        "options": shlex.join(study.options),
        "suites": {name: {"prompts": len(some), "digest": digest(some)} for name, some in prompts.items()},
        "settings": [str(setting) for setting in study.settings()],
        "max_tokens": study.max_tokens,
        "sampling": dict(study.sampling),
        "seed": study.seed,
        "ignore_eos": study.ignore_eos,
        "warmup": study.warmup,
        "interleave": study.interleave,
        "repeats": study.repeats,
        "machine": machine(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }  # fmt: skip
    if study.target is not None:
        found["builds"] = {build.name: conditions.build(build.bin or fork_bin_dir()) for build in study.build}
    return found
