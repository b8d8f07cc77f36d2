"""How the answer of a llama-server becomes a reply: what it tells in one of two ways, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from dflash_tools.bench.arms import LlamaArm, PromptRefusedError, Request, Setting
from dflash_tools.bench.prompts import Prompt
from dflash_tools.client import Completion, RefusedError, SpecCounters, SpecTimings, Timings
from dflash_tools.errors import UserError

PROMPT = Prompt("code", "a", ({"role": "user", "content": "Hi"},), "raw text")
SPEC = SpecTimings(3, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 6.0, (3, 2))


class Server:
    """Stands for the connection: answers with the given timings and counts what it is asked."""

    def __init__(self, timings: Timings, counters: list[SpecCounters] | None = None) -> None:
        self.timings, self.counters = timings, counters
        self.asked: list[dict] = []
        self.looked = 0

    def apply_template(self, messages, **words) -> str:
        return f"<{messages[-1]['content']}>{sorted(words)}"

    def spec_counters(self) -> SpecCounters:
        self.looked += 1
        if self.counters is None:
            raise UserError("/metrics prints counters of 1000000 and more with six digits only")
        return self.counters.pop(0)

    @contextmanager
    def stream_completion(self, text, **params) -> Iterator[Server]:
        self.asked.append({"text": text, **params})
        yield self

    def __iter__(self) -> Iterator[str]:
        return iter(["a", "b"])

    def completion(self) -> Completion:
        return Completion("ab", (1, 2), "limit", False, self.timings)


def request(**setting) -> Request:
    return Request(PROMPT, Setting(**setting), 16, 3, {"top_k": 20})


def timings(tokens: int, accepted: int, spec: SpecTimings | None = None) -> Timings:
    return Timings(predicted_n=tokens, predicted_ms=50.0, draft_n=21, draft_n_accepted=accepted, spec=spec)


def test_phase_times_are_taken_from_the_answer_and_counters_are_asked_no_more():
    server = Server(timings(9, 5, SPEC), [SpecCounters(0, 0, 0)])
    arm = LlamaArm("drafted", server, drafts=True)
    for _ in range(3):
        reply = arm.ask(request())
    assert (reply.rounds, reply.steps, reply.accepted_per_pos, reply.spec) == (3, 3, (3, 2), SPEC)
    assert server.looked == 1


def test_without_phase_times_the_growth_of_the_counters_tells():
    server = Server(timings(9, 5), [SpecCounters(70, 50, 10, (9, 8)), SpecCounters(91, 55, 13, (12, 10))])
    reply = LlamaArm("drafted", server, drafts=True).ask(request())
    assert (reply.rounds, reply.steps, reply.drafted, reply.accepted) == (3, 3, 21, 5)
    assert reply.accepted_per_pos == (3, 2)
    assert reply.spec is None


def test_counters_that_are_rounded_leave_steps_unknown():
    reply = LlamaArm("drafted", Server(timings(9, 5)), drafts=True).ask(request())
    assert (reply.rounds, reply.steps, reply.accepted_per_pos) == (None, None, None)
    assert (reply.tokens, reply.accepted) == (9, 5)


def test_an_answer_of_one_token_took_no_round():
    server = Server(timings(9, 5, SPEC), [SpecCounters(0, 0, 0)])
    arm = LlamaArm("drafted", server, drafts=True)
    arm.ask(request())
    server.timings = timings(1, 0)
    reply = arm.ask(request())
    assert (reply.rounds, reply.steps, reply.decode_ms) == (0, 0, None)


def test_plain_decoding_takes_a_step_for_each_token_and_has_no_rounds():
    reply = LlamaArm("plain", Server(timings(9, 0)), drafts=False).ask(request())
    assert (reply.steps, reply.rounds, reply.drafted, reply.accepted_per_pos) == (8, None, None, None)


def test_every_side_is_asked_alike():
    server = Server(timings(9, 0))
    arm = LlamaArm("plain", server, drafts=False)
    arm.ask(request(temperature=0.7, thinking="on"))
    arm.ask(request(template="raw"))
    chat, raw = server.asked
    assert chat["text"] == "<Hi>['chat_template_kwargs']"
    assert raw["text"] == "raw text"
    assert {name: chat[name] for name in ("n_predict", "temperature", "seed", "top_k", "cache_prompt")} == {
        "n_predict": 16, "temperature": 0.7, "seed": 3, "top_k": 20, "cache_prompt": False,
    }  # fmt: skip


@pytest.mark.parametrize(("status", "kind"), [(400, PromptRefusedError), (500, RefusedError)])
def test_a_refusal_of_the_prompt_is_told_from_a_failure_of_the_server(status, kind):
    server = Server(timings(9, 0))

    def refuse(*_args, **_params):
        raise RefusedError("/completion", status, "error", "no")

    server.stream_completion = refuse
    with pytest.raises(kind):
        LlamaArm("plain", server, drafts=False).ask(request())
