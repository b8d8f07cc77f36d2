"""Log-probabilities of drafted tokens are those of plain decoding: ids, alternatives and values.

Upstream leaves them out for every token that came from a draft.
"""

from __future__ import annotations

from typing import Any

import pytest
from serving import LAYOUTS

TOP = 5
N_PREDICT = 40
# The rows of a verify and of a single step are summed in another order: about 1e-6 in f32, 5e-3 where a GPU uses TF32.
TOLERANCE = {False: 2e-4, True: 2e-2}

STORY = {"messages": [{"role": "user", "content": "Tell me a story about Lena and a mouse."}]}
COMPLETION = {"n_predict": N_PREDICT, "n_probs": TOP, "ignore_eos": True}
CHAT = {**STORY, "max_tokens": N_PREDICT, "logprobs": True, "top_logprobs": TOP}
SAMPLED = {"temperature": 0.9, "seed": 11, "top_k": 20}


def places(server: Any, path: str, body: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """The entry of every generated token, in order, and how many tokens were drafted."""
    events = server.events(path, body)
    drafted = max(event.get("timings", {}).get("draft_n", 0) for event in events)
    if path == "/completion":
        return [place for event in events for place in event.get("completion_probabilities", ())], drafted
    choices = [event["choices"][0] for event in events if event["choices"]]
    return [place for choice in choices for place in (choice.get("logprobs") or {}).get("content", ())], drafted


def assert_close(
    expected: list[dict[str, Any]], found: list[dict[str, Any]], value: str, tops: str, tolerance: float
) -> None:
    assert [place["id"] for place in found] == [place["id"] for place in expected]
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        assert other["bytes"] == one["bytes"], number
        assert other[value] == pytest.approx(one[value], abs=tolerance), number
        assert len(other[tops]) == len(one[tops]) > 0, number
        # Alternatives that are as likely may change places.
        assert [t[value] for t in other[tops]] == pytest.approx([t[value] for t in one[tops]], abs=tolerance), number
        values = {t["id"]: t[value] for t in one[tops]}
        for token in other[tops]:
            assert values.get(token["id"], one[tops][-1][value]) == pytest.approx(token[value], abs=tolerance), number


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", ["/completion", "/v1/chat/completions"])
def test_logprobs_are_those_of_plain_decoding(path, stream, pair, serving, prompt, on_gpu):
    body = {"prompt": list(prompt(pair, 40, 3)), **COMPLETION} if path == "/completion" else CHAT
    body = {**body, "temperature": 0.0, "stream": stream}
    expected, _ = places(serving.plain(pair), path, body)
    found, drafted = places(serving.drafted(pair), path, body)
    assert len(expected) > N_PREDICT // 2
    assert drafted > 0
    assert_close(expected, found, "logprob", "top_logprobs", TOLERANCE[on_gpu])


@pytest.mark.parametrize("more", [(), ("-bs",)], ids=["host", "device"])
@pytest.mark.parametrize("after", [False, True], ids=["before sampling", "after sampling"])
def test_probabilities_of_a_sampled_answer_are_those_of_plain_decoding(after, more, pair, serving, prompt, on_gpu):
    layout = (*LAYOUTS[1], *more)
    body = {"prompt": list(prompt(pair, 40, 2)), **COMPLETION, **SAMPLED, "post_sampling_probs": after}
    expected, _ = places(serving.plain(pair, layout), "/completion", body)
    found, drafted = places(serving.drafted(pair, layout), "/completion", body)
    assert drafted > 0
    value, tops = ("prob", "top_probs") if after else ("logprob", "top_logprobs")
    assert_close(expected, found, value, tops, TOLERANCE[on_gpu])
