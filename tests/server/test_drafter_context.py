"""The drafter's context is made for what it runs: the blocks of all slots."""

from __future__ import annotations

import re

import pytest
from dflash_tools.tiny import ATTENTION, EAGLE3, TINY_PAIRS
from serving import LAYOUTS

BLOCK = 8


@pytest.mark.parametrize("pair", [p for p in TINY_PAIRS if p.engine == "dflash"], ids=lambda p: p.family)
@pytest.mark.parametrize("slots", [1, 4])
def test_logits_are_reserved_for_the_blocks_of_the_slots(slots, pair, serving):
    server = serving.drafted(pair, (*LAYOUTS[slots], "-lv", "5"))  # llama.cpp tells it among details
    limits = re.findall(r"n_outputs_max +=\s+(\d+)", server.log.read_text(errors="replace"))
    assert len(limits) >= 2, "the log does not name the output limits of target and drafter"
    assert int(limits[-1]) == slots * BLOCK


@pytest.mark.parametrize("slots", [1, 4])
def test_logits_of_an_eagle3_drafter_are_reserved_for_a_row_of_each_slot(slots, serving):
    server = serving.drafted(EAGLE3, (*LAYOUTS[slots], "-lv", "5"))
    limits = re.findall(r"n_outputs_max +=\s+(\d+)", server.log.read_text(errors="replace"))
    assert int(limits[-1]) == slots


def test_fitting_to_the_device_counts_the_drafter(pair, serving):
    """Also one that borrows the target's embeddings and head, as all these do."""
    log = serving.drafted(pair).log.read_text(errors="replace")
    assert "fitting without it" not in log
    assert "requires ctx_other" not in log


@pytest.mark.parametrize(("rows", "expected"), [(64, 64), (512, 256)])
def test_features_enter_a_bounded_number_of_rows_at_a_time(rows, expected, serving):
    server = serving.drafted(ATTENTION, (*LAYOUTS[1], "-b", "512", "-ub", str(rows), "-lv", "5"))
    sizes = re.findall(r"n_ubatch +=\s+(\d+)", server.log.read_text(errors="replace"))
    assert int(sizes[0]) == rows
    assert int(sizes[-1]) == expected
