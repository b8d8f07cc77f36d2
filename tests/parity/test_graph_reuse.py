"""The two graphs of a DFlash drafter, features in and drafts out, are built once and used again in every round."""

from __future__ import annotations

import pytest
from parity_cases import CASES

DFLASH = [case for case in CASES if case.engine == "dflash"]


@pytest.mark.parametrize("case", DFLASH, ids=str)
def test_no_round_builds_a_graph_again(case, jobs):
    for job in jobs(case, "hundred"):
        rounds = len(job.rounds)
        assert rounds >= 8, f"only {rounds} rounds: too few to tell"
        # the first round follows a prompt, and the cache is looked at in steps of 256 cells
        assert job.reused >= 2 * rounds - 4, f"{job.reused} graphs reused in {rounds} rounds"
