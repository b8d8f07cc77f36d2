"""Looking for the candidates of a top-k chain in the logits gives what listing the whole vocabulary gives.

A bias of zero changes no logit, and makes the server list the vocabulary.
"""

from __future__ import annotations

from typing import Any

import pytest
from serving import LAYOUTS, Request

LISTED = {"logit_bias": [[7, 0.0]]}
CHAINS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 0.0},
    {"temperature": 1.3, "top_k": 1},
    {"temperature": 1.3, "top_k": 300, "top_p": 0.98},
    {"temperature": 1.0, "repeat_penalty": 1.3},
    {"temperature": 1.0, "samplers": ["top_p", "top_k", "temperature"], "top_p": 0.6},
    {"temperature": 1.0, "grammar": 'root ::= ([0-9] [0-9] "-")+'},
)


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "+".join(chain))
def test_sampled_tokens_are_those_of_the_whole_list(chain, pair, serving, prompt):
    for server in (serving.plain(pair), serving.drafted(pair, LAYOUTS[1])):
        for seed in (1, 2):
            request = Request(prompt(pair, 40, seed), {"seed": seed, "n_predict": 40, "ignore_eos": True, **chain})
            assert request.send(server).tokens == request.send(server, **LISTED).tokens


def test_probabilities_are_those_of_the_whole_list(pair, serving, prompt):
    server = serving.plain(pair)
    body = {"n_predict": 20, "temperature": 0.9, "seed": 4, "n_probs": 50, "post_sampling_probs": True}
    body |= {"prompt": list(prompt(pair, 40, 3)), "cache_prompt": False}
    (one,), (other,) = server.events("/completion", body), server.events("/completion", {**body, **LISTED})
    assert one["completion_probabilities"] == other["completion_probabilities"]
