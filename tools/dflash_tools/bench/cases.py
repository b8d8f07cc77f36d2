"""What `bench-dflash cost` measures: a list of cases, the ones that matter most first.

A case is one way to start the programs; each is run for every build in turn. When time is short, the list is cut from
its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dflash_tools.bench.record import PLAIN

FULL = "full"
LENGTHS = ("1", "7", FULL, "4", "11", "2")
ROWS = (1, 2, 4, 6, 8, 9, 12, 16, 17, 24, 32, 48, 64)
QUICK_ROWS = (1, 2, 4, 8, 9, 16, 17, 32, 64)
_MIDDLE = "7"
_QUICK_LENGTHS = ("1", "7", FULL)
_SHORT = 32  # tokens of prompt that count as no context
_CELLS = 256  # the cache grows by so many


@dataclass(frozen=True)
class Choices:
    """What the user chose. `depth` is the number of drafted tokens, `rounds` those of one sample."""

    depth: int
    rounds: int = 48
    samples: int = 3
    lengths: tuple[str, ...] = LENGTHS
    rows: tuple[int, ...] = ROWS
    contexts: tuple[int, ...] = (8192, 32768)
    prefill: tuple[int, ...] = (2048, 8192, 32768)
    kv: tuple[str, ...] = ("f16", "q8_0")
    slots: tuple[int, ...] = (1, 2, 4)
    samplers: tuple[str, ...] = ("device", "host")


@dataclass(frozen=True)
class Probe:
    """One request: so many tokens of prompt, so many tokens out, so often. One token out: only the prompt is timed."""

    prompt: int
    out: int
    samples: int


@dataclass(frozen=True)
class Case:
    """One way to run the programs. `acceptance` is None without drafter; `rows` are steps of the target alone."""

    acceptance: str | None = None
    probes: tuple[Probe, ...] = ()
    rows: tuple[int, ...] = ()
    context: int = 0
    kv: str = "f16"
    slots: int = 1
    sampler: str = "device"

    @property
    def drafter(self) -> str:
        return PLAIN if self.acceptance is None else "dflash"

    @property
    def name(self) -> str:
        what = "steps" if self.rows else "plain" if self.acceptance is None else f"acceptance {self.acceptance}"
        where = [
            *([f"context {max(self.context, *(p.prompt for p in self.probes), 0)}"] if self._deep else []),
            *([f"KV {self.kv}"] if self.kv != "f16" else []),
            *([f"{self.slots} slots"] if self.slots > 1 else []),
            *(["sampling on the host"] if self.sampler == "host" else []),
        ]
        return ", ".join([what, *where])

    @property
    def _deep(self) -> bool:
        return self.context > 0 or any(p.prompt > _SHORT and p.out > 1 for p in self.probes)

    def cells(self, depth: int) -> int:
        """Context each slot needs: the longest request, and the block drafted at its end."""
        most = max((p.prompt + p.out for p in self.probes), default=0) + depth + 1
        return max(4096, -(-most // _CELLS) * _CELLS)


def plan(choices: Choices) -> list[Case]:
    """All cases for the choices, by priority: the base, its extremes, then everything it may depend on."""
    lengths = [length for length in LENGTHS if length in choices.lengths]
    lengths += [length for length in choices.lengths if length not in LENGTHS]
    middle = _MIDDLE if _MIDDLE in lengths else lengths[0] if lengths else None
    first, more = _prefill(choices, choices.prefill[:2]), _prefill(choices, choices.prefill[2:])
    cases = [
        Case(None, (_decode(choices, None), *first)),
        Case(rows=choices.rows),
        *(Case(length, (_decode(choices, length), *(first if length == middle else ()))) for length in lengths),
    ]
    pairs = [None, *([middle] if middle else [])]
    if "host" in choices.samplers:
        cases += [Case(length, (_decode(choices, length),), sampler="host") for length in pairs]
    for context in choices.contexts:
        cases += [Case(length, (_decode(choices, length, context),)) for length in pairs]
        cases.append(Case(rows=(1, choices.depth + 1), context=context))
    cases += [Case(length, (probe,)) for probe in more for length in pairs if probe.prompt not in choices.contexts]
    for kv in choices.kv:
        if kv != "f16":
            probes = {length: (_decode(choices, length), _decode(choices, length, 8192)) for length in pairs}
            cases += [Case(length, probes[length], kv=kv) for length in pairs]
    for slots in choices.slots:
        if slots > 1:
            cases += [Case(length, (_decode(choices, length),), slots=slots) for length in pairs]
    if "device" not in choices.samplers:
        cases = [replace(case, sampler="host") for case in cases if case.sampler == "device"]
    return cases


def quick(choices: Choices) -> Choices:
    """The least that still shows a round and its parts, but for what was chosen otherwise than by default."""
    least = {
        "rounds": 24,
        "samples": 2,
        "lengths": _QUICK_LENGTHS,
        "rows": QUICK_ROWS,
        "contexts": (),
        "prefill": (2048,),
        "kv": ("f16",),
        "slots": (1,),
        "samplers": ("device",),
    }
    usual = Choices(choices.depth)
    return replace(
        choices, **{name: value for name, value in least.items() if getattr(choices, name) == getattr(usual, name)}
    )


def mean_tokens(length: str | None, depth: int) -> float:
    """Tokens a round gives at that acceptance length, the target's own included; 1 without drafter."""
    if length is None:
        return 1.0
    return depth + 1.0 if length == FULL else min(float(length), depth + 1.0)


def _decode(choices: Choices, length: str | None, context: int = 0) -> Probe:
    # a plain round is one token: twice the rounds, for about as long a sample
    rounds = choices.rounds * (2 if length is None else 1)
    out = 1 + round(rounds * mean_tokens(length, choices.depth))
    return Probe(context or _SHORT, out, 1 if context else choices.samples)


def _prefill(choices: Choices, lengths: Sequence[int]) -> list[Probe]:
    return [Probe(tokens, 1, 1 if tokens > 8192 else min(2, choices.samples)) for tokens in lengths]
