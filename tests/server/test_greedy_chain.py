"""At temperature 0 the samplers that cannot change the choice are left out of a chain; the text stays what it was.

Asked for probabilities (`n_probs`), the server keeps the whole chain: the reference of every case.
"""

from __future__ import annotations

from typing import Any

import pytest
from serving import LAYOUTS

PLACES = (("host", ()), ("device", ("-bs",)))
# Each of the first row drops the most likely token now and then, or makes another token that; the others never do.
CHAINS: tuple[dict[str, Any], ...] = (
    {"xtc_probability": 1.0, "xtc_threshold": 0.01},
    {"typical_p": 0.05},
    {"repeat_penalty": 1.8, "repeat_last_n": 64},
    {"logit_bias": [[token, -20.0] for token in range(300, 330)]},
    {},
    {"top_k": 2, "top_p": 0.1, "min_p": 0.9},
    {"top_n_sigma": 0.5},
    {"samplers": ["top_k", "temperature"]},
    {"samplers": ["top_k", "penalties", "temperature"], "top_k": 3, "repeat_penalty": 1.5},
)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[0])
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "+".join(chain) or "default")
def test_text_is_that_of_the_whole_chain(chain, place, pair, serving, prompt):
    server = serving.plain(pair, (*LAYOUTS[1], *place[1]))
    params = {"temperature": 0.0, "seed": 3, "n_predict": 32, "return_tokens": True, "ignore_eos": True, **chain}
    ids = prompt(pair, 40, 2)
    whole, short = server.completion(ids, n_probs=1, **params), server.completion(ids, **params)
    assert short.tokens == whole.tokens


def test_the_first_cases_are_about_chains_that_change_the_choice(pair, serving, prompt):
    server = serving.plain(pair)
    params = {"temperature": 0.0, "seed": 3, "n_predict": 32, "return_tokens": True, "ignore_eos": True}
    plain = server.completion(prompt(pair, 40, 2), **params).tokens
    for chain in CHAINS[:3]:
        assert server.completion(prompt(pair, 40, 2), **params, **chain).tokens != plain, chain
