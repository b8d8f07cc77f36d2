"""Several answers of one prompt, where old texts hold most of the cells."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from dflash_tools.client import Completion
from serving import UNIFIED


@pytest.mark.parametrize("drafted", [False, True], ids=["plain", "drafted"])
def test_answers_get_the_whole_prompt_and_the_cells_of_what_their_slots_held(drafted, pair, serving, prompt):
    """Two texts, answered at once so that none is put aside, leave less than the prompt needs to a slot that is new."""
    layout = (*UNIFIED, "--seed", "1")  # a server of its own: two slots are new
    server = serving.drafted(pair, layout) if drafted else serving.plain(pair, layout)
    params = {"temperature": 0.0, "ignore_eos": True}

    def answer_in(slot: int) -> Completion:
        return server.completion(prompt(pair, 320, 40 + slot), n_predict=50, id_slot=slot, **params)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(answer_in, (0, 1)))
    ids = list(prompt(pair, 300, 50))
    expected = serving.plain(pair).completion(ids, n_predict=100, cache_prompt=False, **params).text
    (answer,) = server.events("/v1/completions", {"prompt": ids, "n": 3, "max_tokens": 100, **params})
    assert [choice["text"] for choice in answer["choices"]] == [expected] * 3
