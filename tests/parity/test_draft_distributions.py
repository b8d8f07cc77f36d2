"""The drafter's distributions, and the drafts its driver makes of them, are those of the reference drafter.

Each block is recomputed on its own from the reference target's features of the text before it: nothing that the fork
computed enters but the tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from draft_gap import TOLERANCE, compare
from reference_dflash import DFlash

BLOCKS = 14  # of each length, so more than 40 of each case


def test_distributions_and_drafts_equal_the_reference(case, length, jobs, truth, target, drafter):
    runs = [(job, truth(case.pair, job)) for job in jobs(case, length)]
    gap = compare(runs, drafter(case), target(case.pair))
    print(f"{case} {length}: {gap}")
    assert gap.blocks >= BLOCKS, f"only {gap.blocks} blocks were drafted"
    assert gap.distinct >= 1.5 * gap.blocks, f"slots of a block hardly differ, the comparison shows little: {gap}"
    gap.check()


def other_mask_token(model: DFlash) -> DFlash:
    config = model.config["dflash_config"] | {"mask_token_id": model.mask_token - 1}
    return replace(model, config=model.config | {"dflash_config": config})


WRONG = {
    "taps one layer lower": {"shift": -1},
    "taps one layer higher": {"shift": 1},
    "features one position late": {"spoil": lambda features: torch.roll(features, 1, 0)},
}
WRONG_DFLASH = {
    "causal inside the block": lambda model: replace(model, config=model.config | {"is_causal": True}),
    "another mask token": other_mask_token,
}


def test_a_wrong_drafter_would_be_noticed(case, jobs, truth, target, drafter):
    runs = [(replace(job, rounds=job.rounds[:5]), truth(case.pair, job)) for job in jobs(case, "short")]
    right, base = drafter(case), target(case.pair)
    found = {name: compare(runs, right, base, **change) for name, change in WRONG.items()}
    if case.engine == "dflash":
        found |= {name: compare(runs, change(right), base) for name, change in WRONG_DFLASH.items()}
    for name, gap in found.items():
        print(f"{case} {name}: {gap}")
        assert gap.probability > 100 * TOLERANCE, f"{name} is within reach of the tolerance {TOLERANCE}: {gap}"
