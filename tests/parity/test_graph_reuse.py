"""The graph of a drafter, accepted features in and drafts out, is built once and used again in every round."""

from __future__ import annotations

import pytest
from parity_cases import CASES


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_round_builds_a_graph_again(case, jobs):
    for job in jobs(case, "hundred"):
        rounds = len(job.rounds)
        assert rounds >= 8, f"only {rounds} rounds: too few to tell"
        # the first round follows a prompt, and the cache is looked at in steps of 256 cells
        assert job.reused >= rounds - 3, f"{job.reused} graphs reused in {rounds} rounds"
