"""The same greedy request with and without a drafter: is the answer the same, and in how many target steps?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dflash_tools.client import Completion, Counted, LlamaClient, Message, tokens_per_second, tokens_per_step

GREEDY = {"temperature": 0.0, "return_tokens": True}
_CANDIDATES = 10


@dataclass(frozen=True)
class Difference:
    """The first token where two answers part.

    `margin` is how much the plain run preferred its own token there, in nats (log p(plain) - log p(drafted), at
    temperature 1); None when the drafted token was not among its first ten, or one answer simply ended. A margin of a
    few hundredths is a near-tie that other kernels (one row against several) may round either way; a large one is a
    bug.
    """

    index: int
    plain: str
    drafted: str
    margin: float | None

    def __str__(self) -> str:
        margin = "not a near-tie" if self.margin is None else f"margin {self.margin:.4f} nats"
        return f"token {self.index}: {self.plain!r} without, {self.drafted!r} with drafter; {margin}"


@dataclass(frozen=True)
class Pair:
    """One prompt, answered by the server without and by the server with the drafter."""

    prompt: str
    plain: Counted
    drafted: Counted
    difference: Difference | None

    @property
    def equal(self) -> bool:
        return self.difference is None


def chat_pair(plain: LlamaClient, drafted: LlamaClient, messages: Sequence[Message], max_tokens: int) -> Pair:
    """Ask both servers the same, one after the other, greedily. Texts and token ids are compared.

    `cache_prompt` is off, so that the two runs do the same work and no answer depends on an earlier one.
    """
    params: dict[str, Any] = {**GREEDY, "max_tokens": max_tokens, "cache_prompt": False}
    one = plain.counted(lambda: plain.chat(messages, **params))
    two = drafted.counted(lambda: drafted.chat(messages, **params))
    prompt = plain.apply_template(messages)
    return Pair(prompt, one, two, first_difference(plain, prompt, one.completion, two.completion))


def completion_pair(plain: LlamaClient, drafted: LlamaClient, prompt: str, max_tokens: int) -> Pair:
    """Like `chat_pair`, for plain text to go on with."""
    params: dict[str, Any] = {**GREEDY, "n_predict": max_tokens, "cache_prompt": False}
    one = plain.counted(lambda: plain.completion(prompt, **params))
    two = drafted.counted(lambda: drafted.completion(prompt, **params))
    return Pair(prompt, one, two, first_difference(plain, prompt, one.completion, two.completion))


def first_difference(
    plain: LlamaClient, prompt: str | Sequence[int], one: Completion, two: Completion
) -> Difference | None:
    """Where `two` leaves `one`, the answer of the server `plain` to `prompt`; None when texts, ids and reasons to end
    are equal.

    The margin is read from `plain`, given the common part as a prompt.
    """
    if (one.tokens, one.text, one.finish) == (two.tokens, two.text, two.finish):
        return None
    index = next(
        (i for i, (a, b) in enumerate(itertools.zip_longest(one.tokens, two.tokens)) if a != b), len(one.tokens)
    )
    mine, other = (answer.tokens[index] if index < len(answer.tokens) else None for answer in (one, two))
    if mine is None or other is None:
        return Difference(index, _end(one, index), _end(two, index), None)
    ids = plain.tokenize(prompt, add_special=True) if isinstance(prompt, str) else list(prompt)
    top = plain.top_logprobs([*ids, *one.tokens[:index]], _CANDIDATES)
    names = {candidate["id"]: candidate["token"] for candidate in top}
    logprobs = {candidate["id"]: candidate["logprob"] for candidate in top}
    margin = logprobs[mine] - logprobs[other] if {mine, other} <= logprobs.keys() else None
    return Difference(index, names.get(mine, str(mine)), names.get(other, str(other)), margin)


def _end(answer: Completion, index: int) -> str:
    return f"id {answer.tokens[index]}" if index < len(answer.tokens) else f"end ({answer.finish})"


SUMMARY_HEADER = ("", "equal", "tokens", "steps", "tokens/step", "tok/s plain", "tok/s drafter", "ratio")


def summary_row(name: str, pairs: Sequence[Pair]) -> list[str]:
    """One line of the table under `SUMMARY_HEADER`; tokens and steps are those of the run with the drafter."""
    plain, drafted = [pair.plain for pair in pairs], [pair.drafted for pair in pairs]
    before, after = tokens_per_second(plain), tokens_per_second(drafted)
    return [
        name,
        f"{sum(pair.equal for pair in pairs)}/{len(pairs)}",
        str(sum(run.tokens for run in drafted)),
        str(sum(run.steps for run in drafted)),
        f"{tokens_per_step(drafted):.2f}",
        f"{before:.1f}",
        f"{after:.1f}",
        f"{after / before:.2f}x" if before else "-",
    ]
