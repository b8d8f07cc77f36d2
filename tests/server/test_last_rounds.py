"""The last rounds of a request verify as many rows as those before, so their graph is used again."""

from __future__ import annotations

import pytest
from dflash_tools.tiny import ATTENTION
from serving import Request

DEPTH = 7


@pytest.mark.parametrize("n_predict", (3, 5, 21))
def test_drafts_are_whole_to_the_end_of_a_request(n_predict, serving, prompt):
    server = serving.drafted(ATTENTION)
    request = Request(prompt(ATTENTION, 40, 0), {"n_predict": n_predict, "ignore_eos": True, "cache_prompt": False})
    answer = request.send(server)
    assert len(answer.tokens) == n_predict
    assert answer.timings.draft_n > 0
    assert answer.timings.draft_n % DEPTH == 0, f"{answer.timings.draft_n} tokens drafted"
    assert answer.tokens == request.send(serving.plain(ATTENTION)).tokens
