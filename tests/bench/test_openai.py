"""Engines of another make are asked by the protocol, and what they do not tell stays unknown."""

from __future__ import annotations

import signal

import pytest
from dflash_tools.bench.arms import Request, Setting
from dflash_tools.bench.cli import main
from dflash_tools.bench.openai import OpenAIArm
from dflash_tools.bench.prompts import Prompt
from dflash_tools.bench.record import read
from dflash_tools.bench.run import run_study
from dflash_tools.bench.study import ServerSpec, Study, checked
from dflash_tools.bench.summary import suite_rows
from dflash_tools.errors import UserError
from stub_engine import Stub, serve

PROMPT = Prompt("chat", "hello", ({"role": "user", "content": "Hello"},), "Hello, ", ({"type": "function"},))


def request(template: str = "chat", thinking: str = "default", ignore_eos: bool = False) -> Request:
    return Request(PROMPT, Setting(0.7, thinking, template), 32, 11, {"top_k": 20}, ignore_eos)


def test_a_chat_is_asked_by_the_protocol():
    with serve(Stub()) as stub:
        reply = OpenAIArm("other", stub.url).ask(request(thinking="off"))
        path, body = stub.asked[-1]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "Hello"}]
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["tools"] == [{"type": "function"}]
    assert (body["model"], body["max_tokens"], body["temperature"], body["seed"], body["top_k"]) == (
        "m", 32, 0.7, 11, 20,
    )  # fmt: skip
    assert (reply.completion.text, reply.completion.finish, reply.tokens) == ("One two three", "stop", 7)
    assert reply.ttft_ms > 0
    assert reply.stream_ms > 0


def test_a_raw_prompt_is_asked_as_text():
    with serve(Stub()) as stub:
        reply = OpenAIArm("other", stub.url).ask(request("raw", ignore_eos=True))
        path, body = stub.asked[-1]
    assert (path, body["prompt"], body["ignore_eos"]) == ("/v1/completions", "Hello, ", True)
    assert not {"messages", "chat_template_kwargs", "tools"} & body.keys()
    assert reply.completion.text == "One two three"


def test_what_an_engine_does_not_tell_is_unknown():
    with serve(Stub(tokens=None)) as stub:
        reply = OpenAIArm("other", stub.url).ask(request())
    unknown = (reply.tokens, reply.decode_ms, reply.steps, reply.drafted, reply.accepted, reply.accepted_per_pos)
    assert unknown == (None,) * 6


@pytest.mark.parametrize(
    "stub",
    [Stub(pieces=("word ",) * 300, tokens=300, pause=0), Stub(pieces=("all but the last", " word"), tokens=101)],
    ids=["many pieces at once", "nearly all in one piece"],
)
def test_an_answer_that_came_at_once_tells_no_rate(stub):
    with serve(stub):
        reply = OpenAIArm("gathered", stub.url).ask(request())
    assert (reply.tokens, reply.stream_ms) == (stub.tokens, None)
    assert reply.ttft_ms > 0


def test_calls_of_tools_are_compared_like_texts(tmp_path):
    with serve(Stub(pieces=(), calls=('{"x":', "1}"))) as one, serve(Stub(pieces=(), calls=('{"x":', "2}"))) as two:
        servers = (ServerSpec("one", one.url), ServerSpec("two", two.url, baseline="one"))
        record = run_study(checked(Study(server=servers, suites=("tools",), prompts=1, repeats=1, work=tmp_path)))
    assert next(record.select("equal", "two")).values == (0.0,)


def test_a_count_that_is_no_number_is_unknown():
    with serve(Stub(spoil="odd usage")) as stub:
        assert OpenAIArm("other", stub.url).ask(request()).tokens is None


def test_the_counters_of_vllm_give_the_acceptance():
    with serve(Stub(counters=True)) as stub:
        arm = OpenAIArm("vllm", stub.url)
        arm.ask(request())
        reply = arm.ask(request())
    assert (reply.rounds, reply.drafted, reply.accepted, reply.accepted_per_pos) == (3, 6, 3, (2, 1))
    assert reply.steps == 3, "6 tokens after the first, in 3 verified drafts"


@pytest.mark.parametrize(
    ("stub", "said"),
    [
        (Stub(status=400), "refused with status 400: .*too long"),
        (Stub(spoil="no json"), "did not answer /chat/completions"),
        (Stub(spoil="error"), "answered .*out of memory"),
        (Stub(spoil="odd event"), r'sent an event that is no piece of an answer: \{"choices": \[7\]\}'),
        (Stub(spoil="no finish"), "ended without a finish_reason"),
        (Stub(models=("m", "n")), r"serves 2 models \(m, n\); give model="),
    ],
)
def test_an_engine_that_fails_is_named(stub, said):
    with serve(stub), pytest.raises(UserError, match=f"server other.*{said}"):
        OpenAIArm("other", stub.url).ask(request())


def test_an_engine_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"server gone at http://127\.0\.0\.1:9/v1 did not answer"):
        OpenAIArm("gone", "http://127.0.0.1:9/v1", "m").ask(request())


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host/v1", ""])
def test_an_address_of_another_kind_is_refused(url):
    with pytest.raises(UserError, match="server other: url is"):
        OpenAIArm("other", url)


def test_two_engines_are_compared_and_a_planted_difference_is_found(tmp_path):
    with serve(Stub()) as one, serve(Stub(pieces=("One", " two", " THREE"), counters=True)) as two:
        servers = (ServerSpec("one", one.url), ServerSpec("two", two.url, baseline="one"))
        study = Study(server=servers, suites=("prose",), prompts=2, repeats=2, work=tmp_path, interleave="server")
        record = run_study(checked(study))
    (row,) = [row for row in suite_rows(record) if row.build == "two"]
    assert (row.equal, row.al, row.by_client) == ((0, 4), 2.0, True)
    assert row.speedup is not None
    differs = [note for note in record.notes if note.startswith("differs: two, ")]
    assert len(differs) == 2
    assert "prose/lighthouse, chat, temperature 0: character 8: 'three' and 'THREE' (texts compared" in differs[0]


def test_a_prompt_that_one_side_refuses_is_left_out_of_all_and_said(tmp_path):
    with serve(Stub()) as one, serve(Stub(refuses="lighthouse keeper")) as two:
        servers = (ServerSpec("one", one.url), ServerSpec("two", two.url, baseline="one"))
        study = Study(server=servers, suites=("prose",), prompts=3, repeats=2, work=tmp_path)
        record = run_study(checked(study))
    assert {s.labels["prompt"] for s in record.series} == {"market", "bridge"}
    (left_out,) = [note for note in record.notes if note.startswith("left out: ")]
    assert "prose/lighthouse: two: server two: /chat/completions was refused with status 400" in left_out


def test_a_study_that_breaks_off_keeps_what_it_has_and_says_so(tmp_path, capsys):
    stub = Stub()
    with serve(stub):
        ask = OpenAIArm.ask

        def fail_later(self: OpenAIArm, request: Request):
            stub.spoil = "error" if len(stub.asked) == 4 else ""
            return ask(self, request)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OpenAIArm, "ask", fail_later)
            words = ["--suites", "prose", "--prompts", "2", "--repeats", "9", "--warmup", "0", "--work", str(tmp_path)]
            status = main(["run", "--server", f"other={stub.url}", *words, "--out", str(tmp_path / "run")])
    assert status == 1
    assert "broken off: server other: /chat/completions answered" in capsys.readouterr().out
    (rate, other) = read(tmp_path / "run.json").select("tokens")
    assert (rate.values, other.values) == ((7.0, 7.0), (7.0, 7.0))


def test_the_command_asks_an_engine_and_keeps_its_answer(tmp_path, capsys):
    with serve(Stub()) as stub:
        words = ["run", "--server", f"other={stub.url}", "--suites", "prose", "--prompts", "1", "--repeats", "1"]
        assert main([*words, "--work", str(tmp_path), "--out", str(tmp_path / "run")]) == 0
    assert "By suite: chat, temperature 0" in capsys.readouterr().out
    assert read(tmp_path / "run.json").answers[0].text == "One two three"


def test_a_study_that_is_told_to_end_keeps_what_it_has(tmp_path, capsys, monkeypatch):
    with serve(Stub()) as stub:
        ask = OpenAIArm.ask

        def end_later(self: OpenAIArm, request: Request):
            if len(stub.asked) == 3:
                signal.raise_signal(signal.SIGTERM)
            return ask(self, request)

        monkeypatch.setattr(OpenAIArm, "ask", end_later)
        words = ["--suites", "prose", "--prompts", "2", "--repeats", "9", "--warmup", "0", "--work", str(tmp_path)]
        assert main(["run", "--server", f"other={stub.url}", *words, "--out", str(tmp_path / "run")]) == 1
    assert "broken off: interrupted" in capsys.readouterr().out
    assert sum(len(series.values) for series in read(tmp_path / "run.json").select("tokens")) == 3
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
