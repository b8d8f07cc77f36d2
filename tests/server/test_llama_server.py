"""The process and the client that every measurement goes through."""

from __future__ import annotations

import os
import signal
import socket
import sys
from itertools import count

import pytest
from dflash_tools.client import Completion, Counted, RefusedError, Timings, tokens_per_second, tokens_per_step
from dflash_tools.errors import UserError
from dflash_tools.server import LlamaServer
from dflash_tools.tiny import ATTENTION
from serving import EXACT, LAYOUTS

EXTRA = ("-t", "1", "--no-warmup", *EXACT, *LAYOUTS[1])


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def start(bin_dir, tiny_gguf, tmp_path):
    """`start()` makes a server of the attention target, not yet running."""
    numbers = count()

    def make(**options) -> LlamaServer:
        options = {"extra": EXTRA, "log": tmp_path / f"server-{next(numbers)}.log", **options}
        model = options.pop("model", None) or tiny_gguf("qwen3", "target")
        return LlamaServer(bin_dir, model, **options)

    return make


def test_the_process_is_gone_after_the_block(start):
    with start() as server:
        pid = server._process.pid
        assert running(pid)
    assert not running(pid)


def test_the_process_is_gone_after_an_exception(start):
    with pytest.raises(ZeroDivisionError), start() as server:
        pid = server._process.pid
        raise ZeroDivisionError
    assert not running(pid)


def test_two_servers_have_ports_of_their_own(start):
    with start() as one, start() as two:
        assert one.port != two.port
        assert one.healthy()
        assert two.healthy()


def test_a_server_that_logs_nothing_and_has_options_of_its_own_gets_ready(start):
    quiet = ("-lv", "1", "--log-disable", "--port", "1", "--host", "0.0.0.0")
    with start(extra=(*EXTRA, *quiet)) as server:
        assert server.completion("x", n_predict=1).timings.predicted_n == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port cannot be held for another process")
def test_nobody_else_is_given_the_port_of_a_server_that_loads(start, monkeypatch):
    healthy, taken = LlamaServer.healthy, []

    def asked_while_it_loads(server: LlamaServer) -> bool:
        if not taken:
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", server.port))
            taken.append(server.port)
        return healthy(server)

    monkeypatch.setattr(LlamaServer, "healthy", asked_while_it_loads)
    with start() as server:
        assert taken == [server.port]


def test_a_server_that_dies_at_the_start_shows_its_last_words(start, tmp_path):
    with pytest.raises(UserError, match=r"ended with status 1 before it was ready(.|\n)*no-such-file\.gguf"):
        start(model=tmp_path / "no-such-file.gguf").__enter__()


def test_a_server_that_dies_during_a_request_says_how(start):
    with start() as server:
        with server.stream_completion("x", n_predict=900, ignore_eos=True) as stream:
            pieces = iter(stream)
            next(pieces)
            os.kill(server._process.pid, signal.SIGKILL)
            with pytest.raises(UserError):
                stream.completion()
        with pytest.raises(UserError, match="killed by signal 9 during /completion"):
            server.completion("x", n_predict=1)


def test_a_server_that_never_gets_ready_is_ended(start):
    server = start(start_seconds=0.0)
    with pytest.raises(UserError, match="not ready after 0 s"):
        server.__enter__()
    assert server._process is None


def test_missing_programs_name_the_next_step(tmp_path):
    with pytest.raises(UserError, match="run build-fork first"):
        LlamaServer(tmp_path, tmp_path / "t.gguf", log=tmp_path / "log").__enter__()


def test_options_in_the_environment_do_not_reach_the_server(start, monkeypatch):
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "64")
    with start(extra=("-t", "1", "--no-warmup", "-np", "1")) as server:
        assert server.props()["default_generation_settings"]["n_ctx"] > 64


def test_a_refused_request_carries_the_servers_words(serving):
    with pytest.raises(RefusedError, match="grammar") as refused:
        serving.plain(ATTENTION).completion("x", n_predict=1, grammar="root ::= (")
    assert refused.value.status == 400


def test_verify_steps_are_counted_per_request(serving, prompt):
    server = serving.drafted(ATTENTION)
    ids = prompt(ATTENTION, 40, 0)
    run = server.counted(
        lambda: server.completion(ids, n_predict=40, temperature=0.0, ignore_eos=True, return_tokens=True)
    )
    timings = run.completion.timings
    assert timings.predicted_n == len(run.completion.tokens) == 40
    # Nothing is cut when the limit ends the answer, so both ways to count the steps agree.
    assert run.steps == 40 - 1 - timings.draft_n_accepted
    assert run.verified in (run.steps, run.steps - 1)


def completion(**timings) -> Completion:
    return Completion("", (), "limit", False, Timings(**timings))


def test_steps_without_a_draft_count_as_steps():
    # 9 tokens after the first: two drafts with 3 accepted give 4 + 4, the last token came alone.
    run = Counted(completion(predicted_n=10, draft_n_accepted=6), verified=2)
    assert (run.tokens, run.steps) == (9, 3)


def test_a_draft_cut_by_a_stop_counts_the_tokens_that_came_out():
    # One draft of 7, all accepted, but an end token cut it after 3: 1 + 3 tokens out in one step.
    run = Counted(completion(predicted_n=4, draft_n_accepted=7), verified=1)
    assert (run.tokens, run.steps) == (3, 1)


def test_tokens_per_step_is_no_mean_of_means():
    long = Counted(completion(predicted_n=101, draft_n_accepted=80, predicted_ms=100.0), verified=20)
    short = Counted(completion(predicted_n=3, draft_n_accepted=0, predicted_ms=100.0), verified=2)
    assert tokens_per_step([long, short]) == pytest.approx(102 / 22)
    assert tokens_per_second([long, short]) == pytest.approx(102 / 0.2)


def test_nothing_decoded_is_no_division_by_zero():
    run = Counted(completion(predicted_n=1), verified=0)
    assert (tokens_per_step([run]), tokens_per_second([run])) == (0.0, 0.0)
