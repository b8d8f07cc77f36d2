"""The sides of a comparison, asked alike: an own llama-server, or any engine that speaks OpenAI's protocol."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dflash_tools.bench.prompts import Prompt
from dflash_tools.client import Completion, Counted, LlamaClient, RefusedError, SpecCounters, SpecTimings
from dflash_tools.errors import UserError

CHAT, RAW = "chat", "raw"
THINKING = {"on": True, "off": False, "default": None}


# Statuses that speak of the request and not of the server: too long for the context, not understood.
REFUSALS = (400, 413, 422)


class PromptRefusedError(UserError):
    """A side will not answer this prompt, but may answer others."""


@dataclass(frozen=True)
class Setting:
    """How prompts are asked: the same for every side of a comparison."""

    temperature: float = 0.0
    thinking: str = "default"
    template: str = CHAT

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def labels(self) -> dict[str, str]:
        return {"temperature": f"{self.temperature:g}", "thinking": self.thinking, "template": self.template}

    def __str__(self) -> str:
        thinking = "" if self.thinking == "default" or self.template == RAW else f", thinking {self.thinking}"
        return f"{self.template}, temperature {self.temperature:g}{thinking}"


@dataclass(frozen=True)
class Request:
    """One prompt under one setting. `params` are further sampling parameters, by the names engines share."""

    prompt: Prompt
    setting: Setting
    max_tokens: int
    seed: int
    params: Mapping[str, Any]
    ignore_eos: bool = False

    def template_words(self) -> dict[str, Any]:
        """What the chat template is given besides the messages."""
        words: dict[str, Any] = {"tools": list(self.prompt.tools)} if self.prompt.tools else {}
        thinking = THINKING[self.setting.thinking]
        return words if thinking is None else {**words, "chat_template_kwargs": {"enable_thinking": thinking}}


@dataclass(frozen=True)
class Reply:
    """An answer and how long it took. What an engine does not tell is None.

    `tokens` counts all tokens of the answer. `stream_ms` is the time from the first to the last piece as this process
    saw them; `decode_ms` the same by the server's own clock. `steps` are the target's steps after the prompt.
    """

    completion: Completion
    ttft_ms: float | None
    stream_ms: float | None
    tokens: int | None
    decode_ms: float | None = None
    prompt_tokens: int | None = None
    prompt_ms: float | None = None
    steps: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    rounds: int | None = None
    accepted_per_pos: tuple[int, ...] | None = None
    spec: SpecTimings | None = None

    @property
    def decoded(self) -> int | None:
        """Tokens after the first, which comes with the prompt."""
        return None if self.tokens is None else max(0, self.tokens - 1)


class Arm(Protocol):
    """One side: `name` in the record, `own` when its tokens can be compared with those of the run without drafter."""

    name: str
    own: bool

    def ask(self, request: Request) -> Reply: ...


class LlamaArm:
    """A llama-server: token ids, its own clock, and its counters of drafted and accepted tokens."""

    own = True

    def __init__(self, name: str, client: LlamaClient, drafts: bool) -> None:
        self.name = name
        self.client = client
        self.drafts = drafts
        self.timed = False

    def prompt_text(self, request: Request) -> str:
        """What the model reads: the raw text, or what the target's chat template makes of the messages."""
        if request.setting.template == RAW:
            return request.prompt.raw or ""
        return self.client.apply_template(request.prompt.messages, **request.template_words())

    def ask(self, request: Request) -> Reply:
        """A chat goes through the template and then to /completion, which tells ids and parses nothing away."""
        text = self.prompt_text(request)
        params = {
            **request.params,
            "n_predict": request.max_tokens,
            "temperature": request.setting.temperature,
            "seed": request.seed,
            "ignore_eos": request.ignore_eos,
            "cache_prompt": False,
            "return_tokens": True,
        }
        clock = Clock()

        def stream() -> Completion:
            clock.start()
            with self.client.stream_completion(text, **params) as pieces:
                for _ in pieces:
                    clock.tick()
                return pieces.completion()

        before = self._counters()
        try:
            completion = stream()
        except RefusedError as cause:
            raise (PromptRefusedError(str(cause)) if cause.status in REFUSALS else cause) from cause
        self.timed = self.timed or completion.timings.spec is not None
        return self._reply(completion, before, clock)

    def _counters(self) -> SpecCounters | None:
        """None where they say nothing: without drafter, with timings that say it, or grown beyond their six digits."""
        if not self.drafts or self.timed:
            return None
        try:
            return self.client.spec_counters()
        except UserError:
            return None

    def _reply(self, completion: Completion, before: SpecCounters | None, clock: Clock) -> Reply:
        timings, spec = completion.timings, completion.timings.spec
        after = self._counters() if before else None
        grown = after - before if before and after else None
        # A server that times its rounds leaves them out of an answer that took none.
        rounds = spec.rounds if spec else grown.verified if grown else 0 if self.timed else None
        per_pos = spec.accepted_per_pos if spec else grown.accepted_per_pos if grown else ()
        known = rounds is not None or not self.drafts
        return Reply(
            completion=completion,
            ttft_ms=clock.first_ms,
            stream_ms=clock.between_ms,
            tokens=timings.predicted_n,
            decode_ms=timings.predicted_ms if timings.predicted_n > 1 else None,
            prompt_tokens=timings.prompt_n,
            prompt_ms=timings.prompt_ms,
            steps=Counted(completion, rounds or 0).steps if known else None,
            drafted=timings.draft_n if self.drafts else None,
            accepted=timings.draft_n_accepted if self.drafts else None,
            rounds=rounds,
            accepted_per_pos=per_pos or None,
            spec=spec,
        )


class Clock:
    """When the first and the last piece of an answer came, in milliseconds after `start`."""

    def __init__(self) -> None:
        self.begun = self.first = self.last = 0.0
        self.pieces = 0

    def start(self) -> None:
        self.begun = time.perf_counter()
        self.first = self.last = 0.0
        self.pieces = 0

    def tick(self) -> None:
        self.pieces += 1
        self.last = time.perf_counter()
        self.first = self.first or self.last

    @property
    def first_ms(self) -> float | None:
        return 1000 * (self.first - self.begun) if self.first else None

    @property
    def between_ms(self) -> float | None:
        return 1000 * (self.last - self.first) if self.last > self.first else None


def rotated(arms: Sequence[Arm], turn: int) -> list[Arm]:
    """Another side goes first each time, so that a drift of the machine favours none."""
    start = turn % len(arms) if arms else 0
    return [*arms[start:], *arms[:start]]
