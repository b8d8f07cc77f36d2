"""Tasks that come while the server decodes are done by another thread: none is lost and none holds up the answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from dflash_tools.tiny import TINY_PAIRS
from serving import LAYOUTS, Request, assert_same

DRAFTED = TINY_PAIRS[0]


def test_tasks_are_done_while_the_server_decodes(serving, prompt):
    request = Request(prompt(DRAFTED, 40), {"n_predict": 200, "ignore_eos": True})
    plain = serving.plain(DRAFTED)
    expected = request.send(plain)
    server = serving.drafted(DRAFTED, LAYOUTS[4])
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(request.send, server) for _ in range(4)]
        asked = 0
        while not all(answer.done() for answer in answers):
            told = [pool.submit(ask) for ask in (server.slots, server.metrics, server.slots, server.metrics)]
            assert all(each.result(timeout=60) for each in told)
            asked += len(told)
        found = [answer.result() for answer in answers]
    assert asked > 8, "the answers were there before anything was asked"
    for each in found:
        assert_same(plain, request, expected, each)


def test_tasks_that_wait_for_a_slot_get_one_as_soon_as_it_is_free(serving, prompt):
    request = Request(prompt(DRAFTED, 24), {"n_predict": 24, "ignore_eos": True})
    plain = serving.plain(DRAFTED)
    expected = request.send(plain)
    server = serving.drafted(DRAFTED)
    with ThreadPoolExecutor(6) as pool:
        for each in pool.map(lambda _: request.send(server), range(12)):
            assert_same(plain, request, expected, each)
