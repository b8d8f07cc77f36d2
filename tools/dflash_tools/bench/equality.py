"""Is the greedy text the same with and without drafter? And how near a tie was it where it is not?

Own servers are compared by token ids, text and reason to end. Another engine has other kernels, perhaps other weights:
its text is compared as text, and a difference is no fault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

from dflash_tools.bench.arms import Arm, LlamaArm, Reply, Request, Setting
from dflash_tools.bench.prompts import Prompt
from dflash_tools.bench.record import Answer, Record
from dflash_tools.client import Completion
from dflash_tools.compare import first_difference
from dflash_tools.errors import UserError

Replies = Mapping[tuple[str, Setting, Prompt], Sequence[Reply]]
Opener = Callable[[str], AbstractContextManager[Arm]]

_SHOWN = 16


def compare_answers(record: Record, replies: Replies, baselines: Mapping[str, str], opened: Opener) -> None:
    """Add `equal`, `difference_at`, `difference_margin`, the texts, and a note for each difference to `record`.

    `opened(name)` starts that side again; it is used only for the margins of differences.
    """
    with ExitStack() as stack:
        margins = _Margins(stack, opened)
        for (name, setting, prompt), found in replies.items():
            labels = {"suite": prompt.suite, "prompt": prompt.id, **setting.labels()}
            first = found[0].completion
            record.answers.append(Answer(name, labels, _text(first), first.finish))
            if not setting.greedy:
                continue
            place = f"{name}, {prompt.key}, {setting}"
            if unstable := sum(not _same(first, reply.completion) for reply in found[1:]):
                record.notes.append(f"unstable: {place}: {unstable} of {len(found) - 1} repeats differ from the first")
            plain = replies.get((baselines.get(name, ""), setting, prompt))
            if not plain:
                continue
            expected = plain[0].completion
            record.add("equal", name, "0 / 1", [_same(expected, reply.completion) for reply in found], **labels)
            other = next((r.completion for r in found if not _same(expected, r.completion)), None)
            if other is None:
                continue
            if expected.tokens and other.tokens:
                said = margins.difference(
                    record, name, baselines[name], Request(prompt, setting, 0, 0, {}), expected, other
                )
            else:
                said = _text_difference(_text(expected), _text(other))
            record.notes.append(f"differs: {place}: {said}")


class _Margins:
    """First differences of token ids, with their margins from the run without drafter, started when it is needed."""

    def __init__(self, stack: ExitStack, opened: Opener) -> None:
        self.stack, self.opened = stack, opened
        self.arms: dict[str, Arm] = {}

    def difference(
        self, record: Record, name: str, plain: str, request: Request, one: Completion, two: Completion
    ) -> str:
        labels = {"suite": request.prompt.suite, "prompt": request.prompt.id, **request.setting.labels()}
        try:
            if plain not in self.arms:
                self.arms[plain] = self.stack.enter_context(self.opened(plain))
            arm = self.arms[plain]
            assert isinstance(arm, LlamaArm)
            found = first_difference(arm.client, arm.prompt_text(request), one, two)
        except UserError as cause:
            return f"token ids; the margin could not be asked for ({cause})"
        assert found is not None
        record.add("difference_at", name, "token", [found.index], **labels)
        if found.margin is not None:
            record.add("difference_margin", name, "nats", [found.margin], **labels)
        return str(found)


def _same(one: Completion, two: Completion) -> bool:
    """Ids are compared where both sides tell them."""
    if one.tokens and two.tokens:
        return (one.tokens, one.text, one.finish) == (two.tokens, two.text, two.finish)
    return _text(one) == _text(two)


def _text(completion: Completion) -> str:
    return completion.reasoning + completion.text


def _text_difference(one: str, two: str) -> str:
    index = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    ends = [text[index : index + _SHOWN] or "the end" for text in (one, two)]
    return f"character {index}: {ends[0]!r} and {ends[1]!r} (texts compared; there are no token ids)"
