"""Greedy text over HTTP is that of plain decoding, however the request comes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from dflash_tools.client import Completion, LlamaClient, RefusedError
from serving import BATCH, LAYOUTS, SMALL, SMALL_CONTEXT, UBATCH, UNIFIED, Request, assert_same

LENGTHS = {"short": UBATCH // 3, "over the micro-batch": UBATCH + 17, "over the batch": 2 * BATCH + 45}
JSON_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "count": {"type": "integer"},
        "sold": {"type": "boolean"},
    },
    "required": ["name", "count", "sold"],
}
DIGITS_AND_DASHES = 'root ::= ([0-9] [0-9] "-")+'


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS.keys())
def test_text_is_equal_for_every_length_of_prompt(pair, length, serving, prompt):
    plain, drafted = serving.plain(pair), serving.drafted(pair)
    accepted = 0
    for start in (0, 5, 10):
        request = Request(prompt(pair, length, start), {"n_predict": 64, "ignore_eos": True, "cache_prompt": False})
        found = request.send(drafted)
        assert_same(plain, request, request.send(plain), found)
        accepted += found.timings.draft_n_accepted
    assert accepted > 0, "no draft was ever accepted: this would pass with a drafter that guesses at random"


def test_a_stream_gives_the_same_pieces_in_the_end(pair, serving, prompt):
    plain, drafted = serving.plain(pair), serving.drafted(pair)
    request = Request(prompt(pair, 40, 3), {"n_predict": 48, "ignore_eos": True})
    expected = request.send(plain)
    assert_same(plain, request, expected, request.stream(drafted))


def test_a_chat_is_equal_streamed_and_whole(pair, serving):
    plain, drafted = serving.plain(pair), serving.drafted(pair)
    messages = [{"role": "user", "content": "Tell me a story about Lena and a mouse."}]
    params = {"max_tokens": 48, "temperature": 0.0}
    expected = plain.chat(messages, return_tokens=True, **params)
    whole = drafted.chat(messages, return_tokens=True, **params)
    with drafted.stream_chat(messages, **params) as stream:
        streamed = stream.completion()
    assert (whole.tokens, whole.text, whole.finish) == (expected.tokens, expected.text, expected.finish)
    assert (streamed.text, streamed.finish) == (expected.text, expected.finish)
    assert whole.timings.draft_n > 0
    assert streamed.timings.draft_n > 0


def test_a_stop_string_ends_the_text_at_the_same_character(pair, serving, prompt):
    """The stop string is taken from different places of the plain answer, so it falls inside drafts, too."""
    plain, drafted = serving.plain(pair), serving.drafted(pair)
    ids = prompt(pair, 30, 1)
    whole = Request(ids, {"n_predict": 64, "ignore_eos": True}).send(plain).text
    drafts = 0
    for place in range(12, len(whole) - 4, 9):
        request = Request(ids, {"n_predict": 64, "ignore_eos": True, "stop": [whole[place : place + 3]]})
        expected, found = request.send(plain), request.send(drafted)
        assert expected.finish == "word"
        assert_same(plain, request, expected, found)
        drafts += found.timings.draft_n
    assert drafts > 0


def test_a_grammar_constrains_the_same_text(pair, serving, prompt):
    plain, drafted = serving.plain(pair), serving.drafted(pair)
    request = Request(prompt(pair, 33, 7), {"n_predict": 40, "grammar": DIGITS_AND_DASHES, "ignore_eos": True})
    expected = request.send(plain)
    assert set(expected.text) <= set("0123456789-")
    assert_same(plain, request, expected, request.send(drafted))


def test_a_json_schema_constrains_the_same_text(pair, serving, prompt):
    plain, drafted = serving.plain(pair), serving.drafted(pair)
    request = Request(prompt(pair, 50, 9), {"n_predict": 160, "json_schema": JSON_SCHEMA})
    expected = request.send(plain)
    found = request.send(drafted)
    assert_same(plain, request, expected, found)
    if found.finish == "eos":
        assert set(json.loads(found.text)) == set(JSON_SCHEMA["required"])


@pytest.mark.parametrize("slots", LAYOUTS)
def test_mixed_requests_at_once_do_not_touch_each_other(pair, slots, serving, prompt):
    plain = serving.plain(pair)
    requests = mixed_requests(pair, prompt)
    assert_all_same(plain, requests, all_at_once(serving.drafted(pair, LAYOUTS[slots]), requests))


def test_slots_that_share_one_cache_do_not_touch_each_other(pair, serving, prompt):
    """What is batched together depends on timing here, so the requests go out several times.

    On a hybrid target this fails when the recurrent cell of a sequence is moved between its verification and its
    rollback: the snapshots stay behind.
    """
    plain, drafted = serving.plain(pair), serving.drafted(pair, UNIFIED)
    requests = mixed_requests(pair, prompt)
    for _ in range(4):
        assert_all_same(plain, requests, all_at_once(drafted, requests))


def mixed_requests(pair, prompt) -> list[Request]:
    """Short and long prompts and answers, with and without grammar and cache: as many shapes as the slots can meet."""
    return [
        Request(prompt(pair, 20, 0), {"n_predict": 40, "ignore_eos": True}),
        Request(prompt(pair, 90, 1), {"n_predict": 30, "ignore_eos": True}),
        Request(prompt(pair, 170, 2), {"n_predict": 50, "ignore_eos": True}),
        Request(prompt(pair, 12, 3), {"n_predict": 60}),
        Request(prompt(pair, 33, 7), {"n_predict": 24, "grammar": DIGITS_AND_DASHES, "ignore_eos": True}),
        Request(prompt(pair, 64, 4), {"n_predict": 7, "ignore_eos": True}),
        Request(prompt(pair, 65, 5), {"n_predict": 33, "ignore_eos": True, "cache_prompt": False}),
        Request(prompt(pair, 1, 6), {"n_predict": 21, "ignore_eos": True}),
    ]


def all_at_once(server: LlamaClient, requests: list[Request]) -> list[Completion]:
    """Every second answer is streamed."""
    ways = [Request.stream if i % 2 else Request.send for i in range(len(requests))]
    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(lambda way, request: way(request, server), ways, requests))


def assert_all_same(plain: LlamaClient, requests: list[Request], found: list[Completion]) -> None:
    for request, answer in zip(requests, found, strict=True):
        assert_same(plain, request, request.send(plain), answer)


def test_a_second_turn_reuses_the_cache_and_stays_equal(pair, serving, prompt):
    """The cache then holds what the drafts left behind; rejected rows must have left no trace in it."""
    plain, drafted = serving.plain(pair), serving.drafted(pair)
    first = Request(prompt(pair, 50, 11), {"n_predict": 40, "ignore_eos": True})
    one, two = first.send(plain), first.send(drafted)
    assert_same(plain, first, one, two)
    second = Request((*first.prompt, *one.tokens, *prompt(pair, 20, 12)), {"n_predict": 48, "ignore_eos": True})
    expected = second.send(plain, cache_prompt=False)
    found = second.send(drafted)
    assert expected.timings.cache_n == 0
    assert found.timings.cache_n >= len(first.prompt) + len(one.tokens) - 1, "the second turn did not use the cache"
    assert_same(plain, second, expected, found)


def test_a_prompt_that_leaves_the_cached_one_is_equal(pair, serving, prompt):
    """Going back inside a cached text: attention drops rows, a recurrent state must be restored or recomputed."""
    plain, drafted = serving.plain(pair), serving.drafted(pair)
    first = Request(prompt(pair, 100, 13), {"n_predict": 40, "ignore_eos": True})
    first.send(drafted)
    second = Request((*first.prompt[:70], *prompt(pair, 15, 14)), {"n_predict": 48, "ignore_eos": True})
    assert_same(plain, second, second.send(plain, cache_prompt=False), second.send(drafted))


@pytest.mark.parametrize("pieces", [0, 3], ids=["during the prompt", "during the answer"])
def test_a_cancelled_request_leaves_nothing_behind(pair, pieces, serving, prompt):
    plain, drafted = serving.plain(pair), serving.drafted(pair)
    before = drafted.metrics()["tokens_predicted_total"]
    long_answer = {"n_predict": 700, "ignore_eos": True, "temperature": 0.0}
    with drafted.stream_completion(prompt(pair, 300, 2), **long_answer) as stream:
        for _, _piece in zip(range(pieces), stream, strict=False):
            pass
    request = Request(prompt(pair, 45, 8), {"n_predict": 48, "ignore_eos": True})
    assert_same(plain, request, request.send(plain), request.send(drafted))
    made = drafted.metrics()["tokens_predicted_total"] - before
    assert made < 700, "the cancelled request ran to its end"


@pytest.mark.parametrize("length", range(160, 176))
def test_a_full_context_ends_the_same_text(pair, length, serving, prompt):
    """Every phase between the end of the context and the end of a draft comes by."""
    plain, drafted = serving.plain(pair, SMALL), serving.drafted(pair, SMALL)
    request = Request(prompt(pair, length, length % 7), {"n_predict": -1, "ignore_eos": True, "cache_prompt": False})
    expected = request.send(plain)
    assert expected.truncated
    assert expected.finish == "limit"
    assert_same(plain, request, expected, request.send(drafted))


def test_a_prompt_that_does_not_fit_is_refused_the_same(pair, serving, prompt):
    request = Request(prompt(pair, SMALL_CONTEXT + 10, 0), {"n_predict": 4})
    refusals = []
    for server in (serving.plain(pair, SMALL), serving.drafted(pair, SMALL)):
        with pytest.raises(RefusedError) as refused:
            request.send(server)
        refusals.append((refused.value.status, refused.value.kind))
    assert refusals == [(400, "exceed_context_size_error")] * 2
