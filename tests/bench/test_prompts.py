"""Suites: own prompts are whole, packaged ones come in the order the tables of others use, files are checked."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from dflash_tools.bench import prompts
from dflash_tools.bench.prompts import SUITES, Sources, digest, suite
from dflash_tools.errors import UserError


@pytest.fixture
def sources(monkeypatch, tmp_path) -> Sources:
    """Stand-ins for the packaged sets, of the size of the real ones."""
    tasks = [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": f"def task_{i}(x):\n    '''Do {i}.'''\n",
            "canonical_solution": f"    return x + {i}\n",
            "entry_point": f"task_{i}",
        }
        for i in range(164)
    ]
    problems = [{"id": f"gsm8k-test-{i:04}", "prompt": f"How much is {i} and {i}?"} for i in range(100)]
    questions = [
        {"question_id": 81 + i, "category": f"c{i // 10}", "turns": [f"Question {i}", "more"]} for i in range(80)
    ]
    monkeypatch.setattr(prompts, "human_eval", lambda _folder: tasks)
    monkeypatch.setattr(prompts, "gsm8k_sample", lambda _folder: problems)
    monkeypatch.setattr(prompts, "mt_bench", lambda _folder: questions)
    return Sources(tmp_path, long_tokens=1000)


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_has_distinct_prompts(name, sources):
    found = suite(name, 10, sources)
    assert len({prompt.key for prompt in found}) == 10
    assert len({json.dumps(prompt.messages) for prompt in found}) == 10
    assert all(prompt.suite == name and prompt.messages[-1]["role"] == "user" for prompt in found)
    assert len(suite(name, 2, sources)) == 2


def test_the_first_ten_tasks_are_those_of_luces_tables(sources):
    # datasets.shuffle(seed=42) takes numpy's permutation; the lengths in Luce's RESULTS fit these ten tasks.
    expected = [52, 134, 51, 66, 147, 101, 24, 125, 145, 50]
    assert [prompt.id for prompt in suite("code", 10, sources)] == [f"HumanEval/{i}" for i in expected]


def test_raw_prompts_of_maths_have_the_form_of_luces_tables(sources):
    assert suite("maths", 1, sources)[0].raw == "Question: How much is 0 and 0?\nAnswer: "


def test_tool_calls_bring_their_tools_and_cannot_be_asked_raw(sources):
    for prompt in suite("tools", 10, sources):
        names = {tool["function"]["name"] for tool in prompt.tools}
        assert "get_weather" in names
        assert prompt.raw is None


def test_long_prompts_are_as_long_as_wanted_and_ask_about_what_they_hold(sources):
    for prompt in suite("long", 4, sources):
        text = prompt.messages[0]["content"]
        assert len(text) == pytest.approx(3200, rel=0.1)
        for name in re.findall(r"function `(\w+)`", text):
            assert f"def {name}(" in text


def test_the_digest_tells_other_prompts(sources):
    some = suite("prose", 3, sources)
    assert digest(some) == digest(suite("prose", 3, sources))
    assert digest(some) != digest(some[:2])
    assert digest(some) != digest(suite("json", 3, sources))


def test_a_file_of_prompts_is_a_suite(tmp_path, sources):
    path = tmp_path / "mine.json"
    chat = {"id": "hi", "messages": [{"role": "user", "content": "Hi"}]}
    path.write_text(json.dumps([{"prompt": "Once", "kind": "story"}, chat]))
    one, two = suite(str(path), 10, sources)
    assert (one.suite, one.id, one.raw, one.messages[0]["content"]) == ("mine", "0", "Once", "Once")
    assert (two.id, two.raw, two.messages) == ("hi", None, ({"role": "user", "content": "Hi"},))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "expected a list of prompts, found dict"),
        ("[]", "expected a list of prompts"),
        ("[", "is no JSON"),
        ("[5]", "prompt 0: is int"),
        ('[{"prompt": 5}]', "prompt 0: expected 'messages'"),
        ('[{"messages": []}]', "prompt 0: expected 'messages'"),
        ('[{"prompt": "a", "tools": "b"}]', "lists of tools"),
        ('[{"id": "x", "prompt": "a"}, {"id": "x", "prompt": "b"}]', "id 'x' is there more than once"),
    ],
)
def test_a_damaged_file_of_prompts_is_refused(tmp_path, sources, content, said):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        suite(str(path), 1, sources)


def test_an_unknown_suite_is_refused_with_the_known_ones(sources):
    with pytest.raises(UserError, match=r"suite 'cod' is unknown: expected one of code, maths, .*\.json"):
        suite("cod", 1, sources)


def test_the_order_of_tasks_is_a_permutation_of_all():
    assert sorted(np.random.default_rng(42).permutation(164).tolist()) == list(range(164))
