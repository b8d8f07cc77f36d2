"""Drafts longer than a hybrid target can take back are undone by a checkpoint, and the sampler goes back with it.

An n-gram drafter in front of the DFlash drafter makes such drafts from text that repeats itself.
"""

from __future__ import annotations

import pytest
from dflash_tools.tiny import ATTENTION, HYBRID
from serving import LAYOUTS, Request, assert_same

LONG = ("--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "2", "--spec-ngram-simple-size-m", "24")
DETAILS = ("-lv", "5")


@pytest.mark.parametrize("pair", [HYBRID, ATTENTION], ids=lambda pair: pair.family)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_text_is_equal_when_drafts_are_taken_back_by_a_checkpoint(temperature, pair, serving, prompt):
    plain, drafted = serving.plain(pair), serving.drafted(pair, (*LAYOUTS[1], *LONG, *DETAILS))
    before = drafted.log.stat().st_size
    for seed in range(4):
        params = {"temperature": temperature, "seed": seed, "n_predict": 60, "ignore_eos": True}
        request = Request(prompt(pair, 24, seed) * 3, params)
        assert_same(plain, request, request.send(plain), request.send(drafted))
    told = drafted.log.read_bytes()[before:].decode(errors="replace")
    assert ("restoring speculative checkpoint" in told) == (pair is HYBRID)
