"""Hidden states that stay on the device give the drafts of those that went through the host.

With no GPU the device is the CPU, and the same graphs write and read the rows.
"""

from __future__ import annotations

import pytest
from dflash_tools.tiny import TINY_PAIRS
from serving import BATCH, LAYOUTS, UBATCH, Request

HOST = "--no-spec-draft-device-features"
LENGTHS = {"short": UBATCH // 3, "over the batch": 2 * BATCH + 45}


@pytest.fixture(scope="module", params=TINY_PAIRS, ids=lambda pair: f"{pair.family}-{pair.engine}")
def pair(request):
    return request.param


@pytest.fixture(scope="module")
def both(pair, serving):
    return serving.drafted(pair), serving.drafted(pair, (*LAYOUTS[1], HOST))


def what_was_drafted(answer) -> tuple[list[int], int, int]:
    return answer.tokens, answer.timings.draft_n, answer.timings.draft_n_accepted


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS.keys())
def test_drafts_are_the_same(pair, both, length, prompt):
    request = Request(prompt(pair, length, 7), {"n_predict": 48, "ignore_eos": True, "cache_prompt": False})
    found, expected = (request.send(server) for server in both)
    assert what_was_drafted(found) == what_was_drafted(expected)
    assert found.timings.draft_n_accepted > 0, "no draft was ever accepted: drafts of noise would be the same, too"


def test_drafts_stay_the_same_over_turns_that_reuse_the_cache(pair, both, prompt):
    """The second turn goes on from a part of the first answer, so rows that were accepted are forgotten."""
    ids = prompt(pair, 60, 3)
    params = {"n_predict": 40, "ignore_eos": True}
    turns = []
    for server in both:
        first = Request(ids, params).send(server)
        second = Request((*ids, *first.tokens[:25], *prompt(pair, 9, 5)), params).send(server)
        turns.append([what_was_drafted(first), what_was_drafted(second)])
    assert turns[0] == turns[1]
