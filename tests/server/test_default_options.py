"""What a user gets who gives nothing but the model, the drafter and the switch."""

from __future__ import annotations

import pytest
from dflash_tools.compare import first_difference
from dflash_tools.server import LlamaServer
from serving import Request

# Flash attention takes K and V in f16, so a row alone and among others may differ by rounding. A text that went wrong
# is off by whole nats (1 to 10 in the faults these tests found).
NEAR_TIE = 0.02


@pytest.fixture(scope="module")
def servers(pair, bin_dir, tiny_gguf, tmp_path_factory):
    logs = tmp_path_factory.mktemp("default-options")
    target, drafter = tiny_gguf(pair.family, "target"), tiny_gguf(pair.family, pair.engine)
    # Only the number of threads is set: the tests share the machine.
    plain = LlamaServer(bin_dir, target, extra=("-t", "1"), log=logs / "plain.log")
    drafted = LlamaServer(bin_dir, target, drafter, switch=pair.switch, extra=("-t", "1"), log=logs / "drafted.log")
    with plain, drafted:
        yield plain, drafted


def test_greedy_text_is_equal_with_default_options(pair, servers, prompt):
    plain, drafted = servers
    accepted = 0
    for start in range(0, 12, 3):
        request = Request(prompt(pair, 60 + start, start), {"n_predict": 64})
        expected, found = request.send(plain), request.send(drafted)
        difference = first_difference(plain, request.prompt, expected, found)
        assert difference is None or (difference.margin or 1.0) < NEAR_TIE, str(difference)
        accepted += found.timings.draft_n_accepted
    assert accepted > 0


def test_the_draft_depth_is_that_of_the_trained_block(pair, servers, prompt):
    """Upstream drafts 3 tokens unless told otherwise; the switch takes the depth from the drafter's header."""
    _plain, drafted = servers
    if pair.engine == "eagle3":
        pytest.skip("an EAGLE3 drafter has no block; its depth is a choice, not a property")
    before = drafted.spec_counters()
    Request(prompt(pair, 40, 1), {"n_predict": 60, "ignore_eos": True}).send(drafted)
    grown = drafted.spec_counters() - before
    # A block of 8 holds the last token and 7 drafts; only the end of the answer leaves room for fewer.
    assert grown.drafted > 5 * grown.verified
    assert max_depth(drafted) == 7


def max_depth(server: LlamaServer) -> int:
    """Deepest place of a draft the server keeps count of."""
    return sum(name.startswith("spec_decode_num_accepted_tokens_per_pos_total") for name in server.metrics())
