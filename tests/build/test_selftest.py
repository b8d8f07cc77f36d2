"""The self-test fails for what must not pass as built, and says what it could not check."""

from __future__ import annotations

from pathlib import Path

import pytest
from dflash_tools.client import Completion, Counted, Timings
from dflash_tools.compare import Difference, Pair
from dflash_tools.errors import UserError
from dflash_tools.fork import selftest
from dflash_tools.fork.selftest import SMOKE_OPS, devices, operators, self_test

LISTED = "Available devices:\n  CUDA0: NVIDIA H100 80GB HBM3 (81559 MiB, 80000 MiB free)\n"


@pytest.fixture
def programs(tmp_path: Path):
    """A folder of stand-in programs; each is a shell script of the given lines."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def add(**scripts: str) -> Path:
        for name, body in scripts.items():
            path = folder / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(0o755)
        return folder

    start = "echo version: 1"
    add(llama_server=start, llama_cli=start, llama_speculative_simple=start)
    return add


def server(version: str = "echo version: 1", listed: str = LISTED) -> str:
    return f'case "$1" in --version) {version};; --list-devices) printf "{listed}";; esac'


def ops(passed: int, total: int, status: int = 0) -> str:
    return f'echo "$@"; echo "  {passed}/{total} tests passed"; echo "RMS_NORM(x): FAIL"; exit {status}'


def answer(text: str, accepted: int) -> Counted:
    timings = Timings(predicted_n=48, draft_n=60, draft_n_accepted=accepted)
    return Counted(Completion(text, (), "limit", False, timings), verified=12)


def pair(accepted: int = 35, difference: Difference | None = None) -> Pair:
    return Pair("Once", answer("a", 0), answer("b" if difference else "a", accepted), difference)


def test_programs_that_start_pass_and_what_was_not_checked_is_told(ws, programs):
    said: list[str] = []
    checks = self_test(ws, programs(), "cpu", said.append)
    assert checks is not None and [(c.name, c.skipped) for c in checks] == [
        ("start", False),
        ("operators", True),
        ("tiny pair", True),
    ]
    assert said == [c.said for c in checks]


@pytest.mark.parametrize("name", ["llama_server", "llama_cli", "llama_speculative_simple"])
def test_each_program_must_start(ws, programs, name):
    with pytest.raises(UserError, match=rf"{name.replace('_', '-')} --version ended with status 127\n  symbol lookup"):
        self_test(ws, programs(**{name: "echo symbol lookup error; exit 127"}), "cpu")


def test_missing_program_is_a_failure_and_not_a_crash(ws, programs):
    (programs() / "llama-cli").unlink()
    with pytest.raises(UserError, match="llama-cli --version ended with status 126"):
        self_test(ws, programs(), "cpu")


def test_operators_are_compared_on_the_device(ws, programs):
    (ws.patches / "backend-ops").write_text("# touched\nGATED_DELTA_NET\n\nMUL_MAT\n")
    said: list[str] = []
    self_test(ws, programs(llama_server=server(), test_backend_ops=ops(7, 7)), "cuda", said.append)
    assert said[1] == "GATED_DELTA_NET,MUL_MAT on CUDA0 equal the CPU's in 7 of 7 cases"


@pytest.mark.parametrize("script", [ops(6, 7, 1), ops(7, 7, 139), ops(0, 0), "exit 0"])
def test_operator_that_differs_crashes_or_was_not_run_is_a_failure(ws, programs, script):
    with pytest.raises(UserError, match="test-backend-ops -b CUDA0 -o RMS_NORM failed"):
        self_test(ws, programs(llama_server=server(), test_backend_ops=script), "cuda")


def test_device_that_is_not_there_is_told_and_not_passed_over(ws, programs):
    said: list[str] = []
    self_test(ws, programs(llama_server=server(listed="Available devices:\n  (none)\n")), "cuda", said.append)
    assert said[1] == "not checked: operators, because this machine shows no cuda device"


def test_build_for_a_gpu_on_a_machine_without_driver_is_told_as_not_checked(ws, programs):
    no_driver = "echo libcuda.so.1: cannot open shared object file; exit 127"
    said: list[str] = []
    checks = self_test(ws, programs(llama_server=server(no_driver)), "cuda", said.append)
    assert checks is not None and all(c.skipped for c in checks)
    assert all("no NVIDIA driver" in line for line in said)
    with pytest.raises(UserError, match="llama-server --version"):  # no excuse for a CPU build
        self_test(ws, programs(), "cpu")


def test_only_what_became_possible_is_made_up_for(ws, programs, monkeypatch):
    skipped = [{"name": "operators"}, {"name": "tiny pair"}]
    assert self_test(ws, programs(), "cpu", only_if_more_than=skipped) is None
    monkeypatch.setattr(selftest, "_why_no_pair", lambda _: None)
    monkeypatch.setattr(selftest, "_check_pair", lambda *_: selftest.Check("tiny pair", "checked"))
    checks = self_test(ws, programs(), "cpu", only_if_more_than=skipped)
    assert checks is not None and [c.said for c in checks if not c.skipped][-1] == "checked"


def test_devices_are_those_besides_the_cpu(programs):
    listed = "Available devices:\n  Vulkan0: AMD (1 MiB, 1 MiB free)\n  Vulkan1: Intel (1 MiB, 1 MiB free)\n"
    assert devices(programs(llama_server=server(listed=listed))) == ["Vulkan0", "Vulkan1"]
    assert devices(programs(llama_server="exit 1")) == []


def test_operators_default_to_a_quick_one(ws):
    assert operators(ws) == SMOKE_OPS


# the judgement of the two texts


def test_same_text_with_accepted_drafts_passes():
    check = selftest._judge([pair(), pair()], "cpu")
    assert "the same greedy text as without it, " in check.said and "3.9 tokens per verify step" in check.said


def test_same_text_without_one_accepted_draft_is_a_failure():
    """A server that ignores the drafter answers the same, too."""
    with pytest.raises(UserError, match="accepted no token"):
        selftest._judge([pair(accepted=0)], "cpu")


@pytest.mark.parametrize(("backend", "margin"), [("cpu", 0.0001), ("cuda", 0.5), ("cuda", None), ("vulkan", -0.5)])
def test_other_text_is_a_failure(backend, margin):
    with pytest.raises(UserError, match="another greedy text"):
        selftest._judge([pair(), pair(difference=Difference(3, "a", "b", margin))], backend)


def test_near_tie_on_a_gpu_is_told():
    check = selftest._judge([pair(), pair(difference=Difference(3, "a", "b", 0.001))], "cuda")
    assert "but for 1 near-tie" in check.said
