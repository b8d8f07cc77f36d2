"""A text that moves to another slot, or away and back, takes along what its drafter needs, or drafts without."""

from __future__ import annotations

from serving import UNIFIED, Request, assert_same


def test_answers_that_share_a_prompt_are_equal(pair, serving, prompt):
    plain, drafted = serving.plain(pair), serving.drafted(pair, UNIFIED)
    ids = list(prompt(pair, 140, 6))
    Request(prompt(pair, 50, 1), {"n_predict": 12, "ignore_eos": True}).send(drafted)
    body = {"prompt": ids, "n": 3, "max_tokens": 60, "temperature": 0.0, "ignore_eos": True}
    expected = plain.completion(ids, n_predict=60, temperature=0.0, ignore_eos=True, cache_prompt=False).text
    (answer,) = drafted.events("/v1/completions", body)
    assert [choice["text"] for choice in answer["choices"]] == [expected] * 3
    assert answer["timings"]["draft_n_accepted"] > 0


def test_a_second_turn_of_a_text_from_the_prompt_cache_is_equal(pair, serving, prompt):
    plain, drafted = serving.plain(pair), serving.drafted(pair, ("-np", "1", "-c", "1024", "--kv-unified"))
    first = Request(prompt(pair, 120, 7), {"n_predict": 30, "ignore_eos": True})
    one = first.send(drafted)
    Request(prompt(pair, 90, 8), {"n_predict": 30, "ignore_eos": True}).send(drafted)
    second = Request((*first.prompt, *one.tokens, *prompt(pair, 20, 12)), {"n_predict": 40, "ignore_eos": True})
    found = second.send(drafted)
    assert found.timings.cache_n >= len(first.prompt), "the text did not come back from the prompt cache"
    assert_same(plain, second, second.send(plain, cache_prompt=False), found)
