"""A study is read from its file, options override it, and what cannot be run is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from dflash_tools.bench.arms import Setting
from dflash_tools.bench.sides import sides_of
from dflash_tools.bench.study import BuildSpec, DrafterSpec, ServerSpec, Study, checked, read_study
from dflash_tools.errors import UserError

TOML = """
target = "models/t.gguf"
options = ["-c", "8192"]
suites = ["code", "mine.json"]
temperatures = [0, 0.7]
thinking = ["on", "off"]
templates = ["chat", "raw"]
ignore_eos = true
sampling = { top_p = 0.9 }

[[build]]
name = "fork"

[[build]]
name = "upstream"
bin = "/opt/upstream"

[[drafter]]
path = "models/d (1).gguf"

[[drafter]]
name = "old"
path = "models/d.gguf"
switch = ["--spec-type", "draft-dflash"]
build = "upstream"

[[server]]
name = "vllm"
url = "http://127.0.0.1:8000/v1"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "bench.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_study_is_read_from_its_file(tmp_path):
    study = checked(read_study(written(tmp_path, TOML)))
    assert study.target == tmp_path / "models/t.gguf"
    assert study.suites == ("code", str(tmp_path / "mine.json"))
    assert study.build == (BuildSpec("fork"), BuildSpec("upstream", Path("/opt/upstream")))
    assert study.drafter == (
        DrafterSpec(tmp_path / "models/d (1).gguf", "d--1-", build="fork"),
        DrafterSpec(
            tmp_path / "models/d.gguf", "old", switch=("--spec-type", "draft-dflash"), build="upstream"
        ),
    )  # fmt: skip
    assert study.server == (ServerSpec("vllm", "http://127.0.0.1:8000/v1"),)
    assert (study.ignore_eos, study.sampling, study.options) == (
        True,
        {"top_p": 0.9},
        ("-c", "8192", "-np", "1", "-fit", "off"),
    )


def test_settings_are_all_combinations_that_differ(tmp_path):
    settings = read_study(written(tmp_path, TOML)).settings()
    assert settings == [
        Setting(0.0, "on", "chat"),
        Setting(0.7, "on", "chat"),
        Setting(0.0, "off", "chat"),
        Setting(0.7, "off", "chat"),
        Setting(0.0, "default", "raw"),
        Setting(0.7, "default", "raw"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("target = 5", "target is 5, expected str"),
        ("tagret = 'x'", "key 'tagret' is unknown; did you mean target?"),
        ("prompts = '3'", "prompts is '3', expected int"),
        ("prompts = true", "prompts is True, expected int"),
        ("suites = 'code'", "suites is 'code', expected a list"),
        ("temperatures = ['hot']", r"temperatures\[0\] is 'hot', expected int or float"),
        ("[[drafter]]\nname = 'x'", r"drafter\[0\]: path is missing"),
        ("[[server]]\nname = 'x'", r"server\[0\]: url is missing"),
        ("drafter = ['x']", r"drafter\[0\] is 'x', expected a table"),
        ("target = ", "is no TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, said):
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=said) as refused:
        read_study(path)
    assert "bench.toml" in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"bench\.toml: cannot be read"):
        read_study(tmp_path / "bench.toml")


TARGET = Path("t.gguf")
A, B = DrafterSpec(Path("a.gguf"), "a"), DrafterSpec(Path("b.gguf"), "a")


@pytest.mark.parametrize(
    ("study", "said"),
    [
        (Study(), "nothing to measure"),
        (Study(drafter=(A,), server=(ServerSpec("s", "http://x"),)), "a drafter needs its target"),
        (Study(TARGET, repeats=0), "repeats is 0, expected at least 1"),
        (Study(TARGET, thinking=("maybe",)), "thinking: 'maybe' is unknown, expected one of on, off, default"),
        (Study(TARGET, interleave="token"), "interleave: 'token' is unknown"),
        (Study(TARGET, temperatures=(-1.0,)), "-1.0 is not between"),
        (Study(TARGET, suites=()), "suites is empty"),
        (Study(TARGET, drafter=(A, B)), "name 'a': .* unique"),
        (Study(TARGET, drafter=(DrafterSpec(Path("d.gguf"), "a b"),)), "name 'a b'"),
        (Study(TARGET, drafter=(DrafterSpec(Path("d.gguf"), "plain"),)), "name 'plain': another side"),
        (Study(TARGET, drafter=(DrafterSpec(Path("d.gguf"), build="new"),)), "build: 'new' is unknown"),
        (Study(server=(ServerSpec("s", "http://x", baseline="t"),)), "server s: baseline: 't' is unknown"),
    ],
)
def test_what_cannot_be_run_is_refused(study, said):
    with pytest.raises(UserError, match=said):
        checked(study)


def test_servers_do_not_fit_themselves_into_what_memory_is_left():
    assert checked(Study(TARGET)).options == ("-c", "16384", "-np", "1", "-fit", "off")
    own = ("--ctx-size", "512", "--fit", "on", "--parallel", "2")
    assert checked(Study(TARGET, options=own)).options == own


def test_an_engine_may_be_compared_to_any_side():
    server = ServerSpec("vllm", "http://x", baseline="a")
    assert checked(Study(TARGET, drafter=(A,), server=(server,))).side_names() == ["plain", "a", "vllm"]


def test_each_build_has_its_own_baseline(tmp_path):
    builds = (BuildSpec("fork", tmp_path / "fork"), BuildSpec("upstream", tmp_path / "upstream"))
    old = DrafterSpec(Path("d.gguf"), "old", ("--spec-type", "draft-dflash"), build="upstream")
    study = checked(Study(TARGET, drafter=(A, old), build=builds, server=(ServerSpec("vllm", "http://x"),)))
    assert [(side.name, side.baseline) for side in sides_of(study)] == [
        ("fork plain", ""),
        ("fork a", "fork plain"),
        ("upstream plain", ""),
        ("upstream old", "upstream plain"),
        ("vllm", ""),
    ]
    alone = checked(Study(TARGET, drafter=(A,), build=builds[:1]))
    assert [(side.name, side.baseline) for side in sides_of(alone)] == [("plain", ""), ("a", "plain")]
