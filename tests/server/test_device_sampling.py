"""Sampling on the device of the model, which --dflash switches on where there is one, gives what the host samples.

Here the device is the CPU backend, which runs the same graphs.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving import LAYOUTS, MANY

DEVICE = ("-bs",)
SEEDS = 96
N_PREDICT = 12

# One sampler each whose device version is known to differ, so that the fork keeps it on the host, and plain chains.
CHAINS: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
    {"top_k": 100_000},
    {"min_p": 1.0},
    {"dynatemp_range": 0.5},
    {"top_p": 0.3, "min_keep": 5},
    {"mirostat": 2},
    {"repeat_penalty": 1.3, "logit_bias": [[20, 3.0], [21, -3.0]]},
)


def test_many_slots_sample_on_the_device_what_the_host_samples(pair, serving, prompt):
    host, device = serving.drafted(pair, MANY), serving.drafted(pair, (*MANY, *DEVICE))
    ids = prompt(pair, 24, 3)

    def draw(seed: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        # ignore_eos adds a sampler with inputs of its own, so that slots differ in what their graphs read.
        params: dict[str, Any] = {"temperature": 0.8, "seed": seed, "return_tokens": True, "ignore_eos": bool(seed % 2)}
        length = 3 + seed % N_PREDICT
        one = host.completion(ids, n_predict=length, **params)
        other = device.completion(ids, n_predict=length, **params)
        return one.tokens, other.tokens, other.timings.draft_n

    with ThreadPoolExecutor(24) as threads:
        drawn = list(threads.map(draw, range(SEEDS)))
    different = [seed for seed, (one, other, _) in enumerate(drawn) if one != other]
    assert not different, f"other tokens for seeds {different}"
    assert sum(drafts for *_, drafts in drawn) > SEEDS, "the drafter hardly took part"


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "+".join(chain) or "default")
def test_a_chain_samples_on_the_device_what_it_samples_on_the_host(pair, chain, serving, prompt):
    host, device = serving.drafted(pair, LAYOUTS[1]), serving.drafted(pair, (*LAYOUTS[1], *DEVICE))
    params = {"temperature": 0.8, "seed": 7, "n_predict": 24, "return_tokens": True, **chain}
    ids = prompt(pair, 24, 5)
    one, other = host.completion(ids, **params), device.completion(ids, **params)
    assert other.tokens == one.tokens
    assert other.timings.draft_n > 0
