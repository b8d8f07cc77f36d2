"""What `bench-dflash cost` measures: a list of cases, the ones that matter most first.

A case is one way to start the programs; each is run for every build in turn. What does not fit into the time is left
out, the last of the list first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dflash_tools.bench.record import PLAIN

FULL = "full"
LENGTHS = ("1", "7", FULL, "4", "11", "2")
ROWS = (1, 2, 4, 6, 8, 9, 12, 16, 17, 24, 32, 48, 64)
QUICK_ROWS = (1, 2, 4, 8, 9, 16, 17, 32, 64)
_MIDDLE = "7"
_QUICK_LENGTHS = ("1", "7", FULL)
_SHORT = 32  # tokens of prompt that count as no context
_LONG = 4096  # tokens of prompt that take seconds: asked once where shorter ones are asked twice
_CELLS = 256  # the cache grows by so many
_KV_CONTEXT = 8192  # where types of the KV cache are compared
_DEEP = 65536  # contexts beyond it take minutes


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
    visits: int = 2


@dataclass(frozen=True)
class Probe:
    """One request: so many tokens of prompt, so many tokens out, so often. One token out: only the prompt is timed."""

    prompt: int
    out: int
    samples: int


@dataclass(frozen=True)
class Case:
    """One way to run the programs. `acceptance` is None without drafter; `rows` are steps of the target alone.

    In the first turn the builds take turns `visits` times, another one first each time.
    """

    acceptance: str | None = None
    probes: tuple[Probe, ...] = ()
    rows: tuple[int, ...] = ()
    context: int = 0
    kv: str = "f16"
    slots: int = 1
    sampler: str = "device"
    visits: int = field(default=1, compare=False)

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
    """All cases for the choices, by priority: plain steps and the middle acceptance with their prefill, steps by rows,
    the other acceptances, then everything they may depend on.
    """
    lengths = [length for length in LENGTHS if length in choices.lengths]
    lengths += [length for length in choices.lengths if length not in LENGTHS]
    middle = _MIDDLE if _MIDDLE in lengths else lengths[0] if lengths else None
    pairs = [None, *([middle] if middle else [])]
    first, more = _prefill(choices, choices.prefill[:2]), _prefill(choices, choices.prefill[2:])
    near, far = [c for c in choices.contexts if c <= _DEEP], [c for c in choices.contexts if c > _DEEP]
    base = replace(choices, samples=-(-choices.samples // choices.visits))
    cases = [
        *(Case(length, (_decode(base, length), *first), visits=choices.visits) for length in pairs),
        *([Case(rows=choices.rows)] if choices.rows else []),
        *(Case(length, (_decode(choices, length),)) for length in lengths if length != middle),
        *_at_contexts(choices, pairs, near[:1]),
        *(_on_the_host(choices, pairs) if len(choices.samplers) > 1 else []),
        *_in_slots(choices, pairs),
        *_in_cells(choices, pairs),
        *_at_contexts(choices, pairs, near[1:]),
        *(Case(length, (p,)) for p in more for length in pairs if p.prompt not in choices.contexts),
        *_at_contexts(choices, pairs, far),
        *(Case(rows=(1, choices.depth + 1), context=context) for context in choices.contexts if choices.rows),
    ]
    return cases if "device" in choices.samplers else [replace(case, sampler="host") for case in cases]


def _at_contexts(choices: Choices, pairs: Sequence[str | None], contexts: Sequence[int]) -> list[Case]:
    return [Case(length, (_decode(choices, length, context),)) for context in contexts for length in pairs]


def _on_the_host(choices: Choices, pairs: Sequence[str | None]) -> list[Case]:
    return [Case(length, (_decode(choices, length),), sampler="host") for length in pairs]


def _in_slots(choices: Choices, pairs: Sequence[str | None]) -> list[Case]:
    """The most slots first: they tell most."""
    wanted = sorted((n for n in choices.slots if n > 1), reverse=True)
    return [Case(length, (_decode(choices, length),), slots=slots) for slots in wanted for length in pairs]


def _in_cells(choices: Choices, pairs: Sequence[str | None]) -> list[Case]:
    return [
        Case(length, (_decode(choices, length), _decode(choices, length, _KV_CONTEXT)), kv=kv)
        for kv in choices.kv if kv != "f16" for length in pairs
    ]  # fmt: skip


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
        "visits": 1,
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
    return [Probe(tokens, 1, 1 if tokens > _LONG else min(2, choices.samples)) for tokens in lengths]
