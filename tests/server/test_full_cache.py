"""Slots that share a cache have room for their texts in it, and at the end none for drafts."""

from __future__ import annotations

import pytest

CONTEXT = 256
LENGTH = 100


@pytest.mark.parametrize("left", [0, 2, 5, 9, 20], ids=lambda left: f"{left} cells left")
def test_texts_that_fill_a_shared_cache_are_those_of_plain_decoding(left, pair, serving, prompt):
    n_predict = (CONTEXT - left) // 2 - LENGTH
    layout = ("-np", "2", "-c", str(CONTEXT), "--kv-unified")
    prompts = [list(prompt(pair, LENGTH, start)) for start in (0, 3)]
    body = {"n_predict": n_predict, "temperature": 0.0, "ignore_eos": True, "return_tokens": True}
    # several prompts of one request begin together
    (answers,) = serving.drafted(pair, layout).events("/completion", {"prompt": prompts, **body})
    plain = serving.plain(pair)
    for ids, answer in zip(prompts, sorted(answers, key=lambda one: one["index"]), strict=True):
        expected = plain.completion(ids, cache_prompt=False, **body)
        assert answer["tokens"] == list(expected.tokens)
        assert answer["content"] == expected.text
    assert all(answer["timings"]["draft_n"] > 0 for answer in answers)
