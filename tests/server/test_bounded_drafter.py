"""A drafter keeps the newest tokens only (--spec-draft-ctx): less memory, the same text.

Every text here is several times longer than what the drafter keeps.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from dflash_tools.tiny import ATTENTION, EAGLE3, HYBRID
from serving import LAYOUTS, UBATCH, UNIFIED, Request, assert_same

KEPT = 96
BOUND = ("--spec-draft-ctx", str(KEPT))
WHOLE = ("--spec-draft-ctx", "0")
# llama.cpp rounds the size of a cache up to this.
PAD = 256
DETAILS = ("-lv", "5")


def cells(server) -> int:
    """Cells of the drafter's cache: the last one the server made."""
    return int(re.findall(r"\(\s*(\d+) cells", server.log.read_text(errors="replace"))[-1])


def long_requests(pair, prompt) -> list[Request]:
    """As many tokens as one cache has room for, should all of them be there at the same time."""
    return [
        Request(prompt(pair, 330, 1), {"n_predict": 80, "ignore_eos": True}),
        Request(prompt(pair, 20, 2), {"n_predict": 200, "ignore_eos": True}),
        Request(prompt(pair, 150, 3), {"n_predict": 60, "ignore_eos": True}),
        Request(prompt(pair, 75, 5), {"n_predict": 80, "ignore_eos": True, "cache_prompt": False}),
    ]


def test_the_cache_is_as_small_as_asked_for(pair, serving):
    bounded, whole = (serving.drafted(pair, (*LAYOUTS[1], *more, *DETAILS)) for more in (BOUND, WHOLE))
    assert cells(bounded) == -(-(KEPT + UBATCH) // PAD) * PAD
    assert cells(whole) >= 1024


@pytest.mark.parametrize("layout", [LAYOUTS[1], UNIFIED], ids=["one", "four in one cache"])
def test_text_longer_than_what_the_drafter_keeps_is_equal(layout, pair, serving, prompt):
    plain, drafted = serving.plain(pair), serving.drafted(pair, (*layout, *BOUND))
    requests = long_requests(pair, prompt)
    with ThreadPoolExecutor(len(requests)) as threads:
        found = list(threads.map(lambda request: request.send(drafted), requests))
    for request, answer in zip(requests, found, strict=True):
        assert_same(plain, request, request.send(plain), answer)
    assert sum(answer.timings.draft_n_accepted for answer in found) > 40, "the bounded drafter does not draft any more"


def test_going_back_behind_what_the_drafter_keeps_is_equal(pair, serving, prompt):
    """The second prompt leaves the first where the drafter has forgotten everything."""
    plain, drafted = serving.plain(pair), serving.drafted(pair, (*LAYOUTS[1], *BOUND))
    first = Request(prompt(pair, 400, 13), {"n_predict": 60, "ignore_eos": True})
    first.send(drafted)
    second = Request((*first.prompt[:70], *prompt(pair, 15, 14)), {"n_predict": 48, "ignore_eos": True})
    assert_same(plain, second, second.send(plain, cache_prompt=False), second.send(drafted))
    # and a turn that goes on
    third = Request((*first.prompt, *prompt(pair, 30, 4)), {"n_predict": 48, "ignore_eos": True})
    assert_same(plain, third, third.send(plain, cache_prompt=False), third.send(drafted))


def test_answers_that_share_a_prompt_are_equal(pair, serving, prompt):
    """n answers of one request share the cells of its prompt, until each has forgotten them."""
    plain, drafted = serving.plain(pair), serving.drafted(pair, (*UNIFIED, *BOUND))
    ids = list(prompt(pair, 300, 6))
    body = {"prompt": ids, "n": 3, "max_tokens": 130, "temperature": 0.0, "ignore_eos": True}
    expected = plain.completion(ids, n_predict=130, temperature=0.0, ignore_eos=True, cache_prompt=False).text
    (answer,) = drafted.events("/v1/completions", body)
    assert [choice["text"] for choice in answer["choices"]] == [expected] * 3


def test_a_prompt_that_comes_back_from_the_prompt_cache_is_equal(pair, serving, prompt):
    """What is stored of the drafter is what it keeps, and it fits beside the other slots' tokens."""
    plain, drafted = serving.plain(pair), serving.drafted(pair, (*UNIFIED[2:], "-np", "1", *BOUND, *DETAILS))
    first = Request(prompt(pair, 330, 7), {"n_predict": 40, "ignore_eos": True})
    other = Request(prompt(pair, 260, 8), {"n_predict": 40, "ignore_eos": True})
    expected = first.send(plain, cache_prompt=False)
    for request in (first, other):
        request.send(drafted)
    assert_same(plain, first, expected, first.send(drafted))
    log = drafted.log.read_text(errors="replace")
    stored = [
        (int(n), float(mib)) for n, mib in re.findall(r"saving prompt with length (\d+), .*draft: ([\d.]+) MiB", log)
    ]
    assert min(n for n, _ in stored) > 2 * KEPT
    whole = re.findall(rf"size = +([\d.]+) MiB \( *{PAD} cells", log)[-1]
    assert max(mib for _, mib in stored) < 1.2 * float(whole) * KEPT / PAD


@pytest.mark.parametrize("pair", [ATTENTION, EAGLE3], ids=lambda pair: pair.engine)
@pytest.mark.parametrize("bound", [BOUND, ()], ids=["bounded", "default"])
def test_a_context_that_is_shifted_gives_the_same_text(bound, pair, serving, prompt):
    """Targets whose positions can be moved go on behind the end of their context; the drafter follows."""
    layout = ("-np", "1", "-c", "256", "--context-shift")
    plain, drafted = serving.plain(pair, layout), serving.drafted(pair, (*layout, *bound))
    request = Request(prompt(pair, 120, 9), {"n_predict": 400, "ignore_eos": True})
    assert_same(plain, request, request.send(plain), request.send(drafted))


def test_checkpoints_hold_nothing_of_a_drafter_that_can_forget(serving, prompt):
    """Those of a hybrid target are as large with a drafter as without."""
    pair = HYBRID
    sizes = []
    for server in (serving.plain(pair, (*LAYOUTS[1], *DETAILS)), serving.drafted(pair, (*LAYOUTS[1], *DETAILS))):
        Request(prompt(pair, 300, 10), {"n_predict": 4}).send(server)
        log = server.log.read_text(errors="replace")
        sizes.append(re.findall(r"created context checkpoint .*size = ([\d.]+) MiB", log))
    assert sizes[0], "no checkpoint was made"
    assert sizes[0] == sizes[1]
