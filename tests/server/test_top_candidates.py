"""Looking for the candidates of a top-k chain in the logits gives what listing the whole vocabulary gives.

A bias of zero changes no logit, and many of them make the server list the vocabulary.
"""

from __future__ import annotations

from typing import Any

import pytest
from serving import LAYOUTS, Request

MANY = 100
CHAINS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 0.0},
    {"temperature": 1.3, "top_k": 1},
    {"temperature": 1.3, "top_k": 300, "top_p": 0.98},
    {"temperature": 1.0, "repeat_penalty": 1.3},
    {"temperature": 1.0, "samplers": ["top_p", "top_k", "temperature"], "top_p": 0.6},
    {"temperature": 1.0, "grammar": 'root ::= ([0-9] [0-9] "-")+'},
    {"temperature": 1.0, "ignore_eos": False},
    {"temperature": 1.0, "logit_bias": [[token, 4.0] for token in range(300, 330)]},
    {"temperature": 1.0, "logit_bias": [[token, -9.0] for token in range(280, 340)], "top_k": 5},
    {"temperature": 1.0, "logit_bias": [[token, 30.0] for token in (310, 400, 500)], "top_k": 2},
)


def listed(chain: dict[str, Any]) -> dict[str, Any]:
    """The chain with so many biases that all tokens are listed."""
    biases = chain.get("logit_bias", [])
    zeros = [[token, 0.0] for token in range(600, 600 + MANY)]
    return {**chain, "logit_bias": [*biases, *zeros]}


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "+".join(chain))
def test_sampled_tokens_are_those_of_the_whole_list(chain, pair, serving, prompt):
    for server in (serving.plain(pair), serving.drafted(pair, LAYOUTS[1])):
        for seed in (1, 2):
            params = {"seed": seed, "n_predict": 40, "ignore_eos": True}
            few, all_ = (Request(prompt(pair, 40, seed), {**params, **c}).send(server) for c in (chain, listed(chain)))
            assert few.tokens == all_.tokens


def test_probabilities_are_those_of_the_whole_list(pair, serving, prompt):
    server = serving.plain(pair)
    body = {"n_predict": 20, "temperature": 0.9, "seed": 4, "n_probs": 50, "post_sampling_probs": True}
    body |= {"prompt": list(prompt(pair, 40, 3)), "cache_prompt": False}
    (one,), (other,) = server.events("/completion", body), server.events("/completion", listed(body))
    assert one["completion_probabilities"] == other["completion_probabilities"]
