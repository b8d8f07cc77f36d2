"""Records made by hand, small enough to check with a pencil."""

from __future__ import annotations

from collections.abc import Sequence

from dflash_tools.bench.record import PHASES, Record

GREEDY = {"temperature": "0", "thinking": "default", "template": "chat"}
SAMPLED = {**GREEDY, "temperature": "0.7"}
RAW = {**GREEDY, "template": "raw"}


def run_record(**conditions: object) -> Record:
    """A run of "plain" and "drafted"."""
    return Record("run", {"target": {"file": "toy.gguf"}, "baselines": {"drafted": "plain"}, **conditions})


def add_prompt(
    record: Record,
    build: str,
    prompt: str,
    tokens: Sequence[int],
    ms: Sequence[float],
    *,
    suite: str = "code",
    setting: dict[str, str] = GREEDY,
    steps: Sequence[int] = (),
    accepted_at: Sequence[int] = (),
    phases: dict[str, float] | None = None,
    clock: str = "decode_ms",
) -> None:
    """One prompt of one side, one value per pass; `accepted_at` by position, `phases` in ms per round."""
    labels = {"suite": suite, "prompt": prompt, **setting}
    record.add("tokens", build, "count", tokens, **labels)
    record.add(clock, build, "ms", ms, **labels)
    if clock == "decode_ms":
        rates = [1000 * (n - 1) / time for n, time in zip(tokens, ms, strict=True)]
        record.add("decode_rate", build, "tok/s", rates, **labels)
    if steps:
        record.add("steps", build, "count", steps, **labels)
    if accepted_at:
        record.add("rounds", build, "count", steps, **labels)
        for position, count in enumerate(accepted_at, 1):
            record.add("accepted_at", build, "count", [count], position=position, **labels)
    for phase in PHASES if phases else ():
        record.add("phase_ms", build, "ms", [phases[phase]], phase=phase, **labels)


def toy_run() -> Record:
    """Two suites, two passes; the drafter halves the time of code and doubles that of chat."""
    record = run_record()
    even = dict.fromkeys(PHASES, 1.0)
    add_prompt(record, "plain", "a", [101, 101], [1000.0, 1000.0], steps=[100, 100])
    add_prompt(record, "plain", "b", [51, 51], [500.0, 500.0], steps=[50, 50])
    add_prompt(record, "plain", "c", [21, 21], [200.0, 200.0], suite="chat", steps=[20, 20])
    add_prompt(
        record, "drafted", "a", [101, 101], [500.0, 500.0], steps=[25, 25], accepted_at=[50, 25], phases=even
    )  # fmt: skip
    add_prompt(
        record, "drafted", "b", [51, 51], [250.0, 250.0], steps=[25, 25], accepted_at=[25, 0], phases=even
    )  # fmt: skip
    add_prompt(
        record, "drafted", "c", [21, 21], [400.0, 400.0], suite="chat", steps=[20, 20], accepted_at=[0, 0],
        phases={**even, "verify": 9.0},
    )  # fmt: skip
    return record


def toy_cost() -> Record:
    """Steps, phases, decoding with drawn acceptance, of two builds."""
    record = Record("cost", {"shape": "toy"})
    for build, factor in (("fork", 1.0), ("upstream", 2.0)):
        for rows in (1, 4, 16):
            record.add("step_ms", build, "ms", [factor * (10 + rows)] * 3, rows=rows, context=0)
        for phase in PHASES:
            slow = 20.0 if phase == "commit" and build == "upstream" else 2.0
            record.add("phase_ms", build, "ms", [slow], phase=phase, acceptance="7", drafter="dflash")
        record.add("decode_rate", build, "tok/s", [50.0], drafter="none")
        for length in (1, 4, 7):
            record.add("decode_rate", build, "tok/s", [30.0 * length / factor], drafter="dflash", acceptance=length)
    return record
