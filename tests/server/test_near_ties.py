"""On a GPU a text may leave that of plain decoding at a near-tie, and nowhere else; on the CPU nowhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
from dflash_tools.tiny import ATTENTION
from serving import GPU_NEAR_TIE, Request, assert_same


@pytest.fixture
def parted(serving, prompt):
    """A plain server, a request, its answer, one that takes the second likeliest token at the end, and the margin."""
    server = serving.plain(ATTENTION)
    request = Request(prompt(ATTENTION, 40, 0), {"n_predict": 2, "ignore_eos": True})
    expected = request.send(server)
    first, second = server.top_logprobs([*request.prompt, expected.tokens[0]], 2)
    assert first["id"] == expected.tokens[1]
    found = replace(expected, tokens=[expected.tokens[0], second["id"]], text="another")
    return server, request, expected, found, first["logprob"] - second["logprob"]


def test_another_text_fails_where_nothing_is_a_near_tie(parted, monkeypatch):
    server, request, expected, found, margin = parted
    monkeypatch.setattr(server, "near_tie", margin / 2)
    with pytest.raises(AssertionError, match="margin"):
        assert_same(server, request, expected, found)


def test_another_text_from_a_near_tie_on_is_a_warning(parted, monkeypatch):
    server, request, expected, found, margin = parted
    monkeypatch.setattr(server, "near_tie", margin * 2)
    with pytest.warns(UserWarning, match="near-tie"):
        assert_same(server, request, expected, found)


def test_no_near_tie_is_allowed_on_the_cpu(serving, on_gpu):
    assert serving.plain(ATTENTION).near_tie == (GPU_NEAR_TIE if on_gpu else 0.0)
