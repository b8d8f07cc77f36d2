"""A build is made once, counts only when its programs ran, and says why when it fails."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from build_helpers import FAKE_PROGRAM, Upstream, commit
from dflash_tools.errors import UserError
from dflash_tools.fork import build as building
from dflash_tools.fork import cli, selftest, toolchain
from dflash_tools.fork import plan as planning
from dflash_tools.fork.build import STAMP, bin_dir, build, relevant_lines
from dflash_tools.fork.ctest import ASKS_THE_INTERNET, UPSTREAM, ctest_programs, run_tests
from dflash_tools.fork.plan import PROGRAMS, Options, make_plan
from dflash_tools.fork.workspace import Workspace
from dflash_tools.fork.worktree import export

CPU = Options(backend="cpu")
pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")


@pytest.fixture(autouse=True)
def no_build_options_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("CMAKE_", "CCACHE_", "CXXFLAGS", "CFLAGS", "LDFLAGS"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def broken(series: Workspace):
    """A function that exports a patch which changes the programs of the stand-in."""

    def change(program: str) -> Workspace:
        commit(series, "kv : change the programs", {"src/program.cpp": program})
        export(series)
        return series

    return change


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "run_logged", lambda *_: pytest.fail("something was built"))


# one build, looked at from all sides (a stand-in builds in a second, but a second is a second)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, templates: dict[str, Path], upstream: Upstream):
    root = tmp_path_factory.mktemp("built") / "checkout"
    shutil.copytree(templates["series"], root, symlinks=True)
    ws = Workspace(root, upstream.pin)
    lines: list[str] = []
    return ws, build(ws, CPU, say=lines.append), lines


def test_built_programs_run_from_the_link(built):
    ws, plan, _ = built
    assert bin_dir(ws) == ws.bin and ws.bin.is_symlink() and not ws.bin.readlink().is_absolute()
    for name in PROGRAMS:
        assert subprocess.run([bin_dir(ws) / name], capture_output=True, check=True).stdout == b"version: stand-in\n"
    assert (ws.bin / "..").resolve() == plan.folder


def test_what_was_not_checked_is_said(built):
    _, _, lines = built
    assert any(line.startswith("llama-server, llama-cli and llama-speculative-simple start") for line in lines)
    assert any(line.startswith("not checked: drafting, because the checkout has no models/tiny") for line in lines)
    assert any(line.startswith("not checked: test-backend-ops compares a device with the CPU") for line in lines)


def test_second_build_does_nothing_and_says_so(built, monkeypatch):
    ws, plan, _ = built
    forbid_work(monkeypatch)
    lines: list[str] = []
    assert build(ws, CPU, say=lines.append).folder == plan.folder
    (line,) = lines
    assert line.endswith("nothing to do")


def test_build_folder_does_not_depend_on_jobs_but_on_all_that_changes_the_result(built, monkeypatch):
    ws, plan, _ = built
    folders = {plan.folder}
    assert make_plan(ws, dataclasses.replace(CPU, jobs=7)).folder == plan.folder
    for other in (
        dataclasses.replace(CPU, extra=("-DGGML_NATIVE=OFF",)),
        dataclasses.replace(CPU, ui=True),
        dataclasses.replace(CPU, work_tree=True),
        Options(cuda_arch="90"),
        Options(cuda_arch="90;120"),
    ):
        folders.add(make_plan(ws, other).folder)
    folders.add(make_plan(dataclasses.replace(ws, pin=dataclasses.replace(ws.pin, commit="1" * 40)), CPU).folder)
    monkeypatch.setattr(toolchain, "find_compiler", lambda: toolchain.Compiler("c++", "another compiler 1.0"))
    folders.add(make_plan(ws, CPU).folder)
    monkeypatch.undo()
    monkeypatch.setattr(toolchain, "cpu_features", lambda: "another CPU")
    folders.add(make_plan(ws, CPU).folder)
    assert len(folders) == 9


def test_work_tree_that_moved_on_is_noted(built):
    ws, _, _ = built
    (ws.tree / "src" / "new.cpp").write_text("int main() { return 2; }\n")
    lines: list[str] = []
    build(ws, CPU, say=lines.append)
    assert lines[-1].startswith("note: .fork/llama.cpp has 1 edited file (src/new.cpp)")
    (ws.tree / "src" / "new.cpp").write_text("int main() { return 0; }\n")


def test_check_skipped_for_want_of_something_is_made_up_for_when_it_is_there(built, monkeypatch):
    ws, _, _ = built
    ran: list[str] = []
    monkeypatch.setattr(selftest, "_why_no_pair", lambda _: None)
    monkeypatch.setattr(
        selftest, "_check_pair", lambda *_: ran.append("pair") or selftest.Check("tiny pair", "same text")
    )
    forbid_work(monkeypatch)
    for _ in range(2):
        build(ws, CPU)
    assert ran == ["pair"], "once, and then it is not skipped any more"


def test_tests_are_built_on_top_and_run(built, monkeypatch, capfd):
    ws, plan, _ = built
    monkeypatch.setattr(cli, "find_workspace", lambda: ws)
    assert "test-loop" in ctest_programs(ws), "a test that a patch adds is one of ours"
    monkeypatch.setattr(planning, "ctest_programs", lambda _: UPSTREAM)
    monkeypatch.setattr(cli, "ctest_programs", lambda _: UPSTREAM)
    assert cli.main(["test", "--backend", "cpu"]) == 0
    out = capfd.readouterr().out
    assert "100% tests passed, 0 tests failed out of 6" in out and "test-arg-parser: passed" in out
    assert (plan.folder / STAMP).is_file() and (plan.bin / "test-sampling").is_file()


def fake_ctest(tmp_path: Path, said: str, status: int) -> str:
    """A ctest whose tests all pass, except for the one that asks the internet."""
    path = tmp_path / "ctest"
    name = next(iter(ASKS_THE_INTERNET))
    path.write_text(f"#!/bin/sh\ncase \"$*\" in *-V*{name}*) echo '{said}'; exit {status};; esac\n")
    path.chmod(0o755)
    return str(path)


def test_test_that_fails_for_want_of_the_internet_is_not_a_failure_but_one_that_fails_before_is(tmp_path, capfd):
    lines: list[str] = []
    asks = next(iter(ASKS_THE_INTERNET.values()))
    run_tests(fake_ctest(tmp_path, asks, 8), tmp_path, UPSTREAM, 1, lines.append)
    assert lines == ["test-arg-parser: passed up to its last part, which failed because it asks the internet"]
    with pytest.raises(UserError, match="test-arg-parser failed"):
        run_tests(fake_ctest(tmp_path, "assertion failed", 8), tmp_path, UPSTREAM, 1)
    assert "assertion failed" in capfd.readouterr().out


# builds that go wrong


def test_compile_error_is_shown_with_the_place_and_the_log_and_fixed_build_goes_on(broken):
    ws = broken("int main() { return oops; }\n")
    with pytest.raises(UserError) as e:
        build(ws, CPU)
    assert "program.cpp:1:21" in str(e.value) and "oops" in str(e.value) and "build-fork.log" in str(e.value)
    with pytest.raises(UserError, match="run build-fork first"):
        bin_dir(ws)
    commit(ws, "kv : change the programs back", {"src/program.cpp": FAKE_PROGRAM})
    export(ws)
    build(ws, CPU)
    assert bin_dir(ws)


def test_program_that_does_not_start_is_not_a_build(broken, monkeypatch):
    ws = broken('#include <cstdio>\nint main() { std::puts("symbol lookup failed"); return 3; }\n')
    for _ in range(2):  # the second time as well: compiled is not built
        with pytest.raises(UserError, match=r"self-test: llama-server --version ended with status 3\n  symbol lookup"):
            build(ws, CPU)
    assert not ws.bin.exists() and not list(ws.made.glob(f"*/{STAMP}"))


def test_failed_build_leaves_the_link_on_the_last_good_one(broken, monkeypatch):
    ws = broken(FAKE_PROGRAM + "// one\n")
    good = build(ws, CPU).bin
    commit(ws, "kv : break the programs", {"src/program.cpp": "int main() { return 1; }\n"})
    export(ws)
    with pytest.raises(UserError, match="self-test"):
        build(ws, CPU)
    assert ws.bin.resolve() == good.resolve()
    (good / "llama-quantize").unlink()
    with pytest.raises(UserError, match="has no llama-quantize"):
        bin_dir(ws)


def test_deleted_program_and_damaged_stamp_are_built_again(broken):
    ws = broken(FAKE_PROGRAM + "// two\n")
    plan = build(ws, CPU)
    (plan.bin / "llama-cli").unlink()
    build(ws, CPU)
    assert (plan.bin / "llama-cli").is_file()
    (plan.folder / STAMP).write_text('{"inputs": ')
    lines: list[str] = []
    build(ws, CPU, say=lines.append)
    assert any(line.startswith("compiled in") for line in lines)


def test_build_that_fails_the_second_time_is_not_done_any_more(broken, monkeypatch):
    ws = broken(FAKE_PROGRAM + "// three\n")
    plan = build(ws, CPU)
    (plan.bin / "llama-cli").unlink()
    monkeypatch.setattr(selftest, "_check_start", lambda *_: (_ for _ in ()).throw(UserError("self-test: no")))
    with pytest.raises(UserError, match="self-test: no"):
        build(ws, CPU)
    assert (plan.bin / "llama-cli").is_file() and not (plan.folder / STAMP).exists()


@pytest.mark.skipif(shutil.which("ccache") is None, reason="ccache is not installed")
def test_compiler_cache_serves_another_clone_but_never_another_cpu(templates, upstream, tmp_path, monkeypatch):
    monkeypatch.setenv("CCACHE_DIR", str(tmp_path / "cache"))
    misses = []
    for name in ("first", "other-path/second", "third"):
        ws = Workspace(tmp_path / name, upstream.pin)
        shutil.copytree(templates["fetched"], ws.root, symlinks=True)
        if name == "third":
            monkeypatch.setattr(toolchain, "cpu_features", lambda: "another CPU")
        build(ws, dataclasses.replace(CPU, extra=("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache",)))
        stats = subprocess.run(["ccache", "--print-stats"], capture_output=True, text=True, check=True).stdout
        misses.append(int(dict(line.split() for line in stats.splitlines() if "\t" in line)["cache_miss"]))
    assert misses[0] > 0
    assert misses[1] == misses[0], "the second clone compiles nothing"
    assert misses[2] > misses[1], "code for another CPU is not taken"


@pytest.mark.skipif(shutil.which("ccache") is None, reason="ccache is not installed")
def test_compiler_cache_serves_upstream_what_no_patch_changes(templates, upstream, tmp_path, monkeypatch):
    monkeypatch.setenv("CCACHE_DIR", str(tmp_path / "cache"))
    ws = Workspace(tmp_path / "checkout", upstream.pin)
    shutil.copytree(templates["series"], ws.root, symlinks=True)
    options = dataclasses.replace(CPU, extra=("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache",))
    misses = []
    for without in (False, True):
        build(ws, dataclasses.replace(options, upstream=without))
        stats = subprocess.run(["ccache", "--print-stats"], capture_output=True, text=True, check=True).stdout
        misses.append(int(dict(line.split() for line in stats.splitlines() if "\t" in line)["cache_miss"]))
    assert misses[0] > 0 and misses[1] == misses[0]


def test_edits_stop_a_build_of_the_patches_and_are_built_with_work_tree(series):
    (series.tree / "src" / "program.cpp").write_text(FAKE_PROGRAM.replace("stand-in", "edited"))
    with pytest.raises(UserError, match=r"src/program\.cpp.*export"):
        build(series, CPU)
    plan = build(series, dataclasses.replace(CPU, work_tree=True))
    assert subprocess.run([plan.bin / "llama-cli"], capture_output=True, check=True).stdout == b"version: edited\n"
    (series.tree / "src" / "program.cpp").write_text(FAKE_PROGRAM.replace("stand-in", "again"))
    assert build(series, dataclasses.replace(CPU, work_tree=True)).folder == plan.folder, "incremental, in one folder"
    assert subprocess.run([plan.bin / "llama-cli"], capture_output=True, check=True).stdout == b"version: again\n"


def test_upstream_is_built_without_patches_beside_the_fork(broken):
    ws = broken(FAKE_PROGRAM.replace("stand-in", "patched"))
    fork, lines = build(ws, CPU), []
    upstream = build(ws, dataclasses.replace(CPU, upstream=True), say=lines.append)
    for link, said in ((ws.bin, b"version: patched\n"), (ws.upstream_bin, b"version: stand-in\n")):
        assert subprocess.run([link / "llama-server"], capture_output=True, check=True).stdout == said
    assert ws.bin.resolve() == fork.bin.resolve() and ws.upstream_bin.resolve() == upstream.bin.resolve()
    assert "not checked: drafting, because upstream has no --dflash" in lines
    commit(ws, "kv : change the programs again", {"src/program.cpp": FAKE_PROGRAM + "// four\n"})
    export(ws)
    assert make_plan(ws, dataclasses.replace(CPU, upstream=True)).folder == upstream.folder, (
        "patches do not matter to it"
    )


@pytest.mark.parametrize("other", ["tests", "work_tree"])
def test_upstream_goes_with_nothing_that_is_about_patches(series, other):
    with pytest.raises(UserError, match=f"--{other.replace('_', '-')} is about the patches"):
        make_plan(series, dataclasses.replace(CPU, upstream=True, **{other: True}))


def test_patch_that_does_not_apply_stops_before_anything_is_made(series):
    path = series.patches / "switch" / "0001-name-the-tenth-line.patch"
    path.write_bytes(path.read_bytes().replace(b"line_9 ", b"line_99 "))
    with pytest.raises(UserError, match=r"0001-name-the-tenth-line\.patch: does not apply"):
        build(series, CPU)
    assert not list(series.made.glob("build-*/"))


def test_no_disk_stops_before_anything_is_made(series, monkeypatch):
    usage = shutil.disk_usage(series.root)
    monkeypatch.setattr(toolchain.shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    with pytest.raises(UserError, match="GB free"):
        build(series, CPU)
    assert not list(series.made.glob("build-*/"))


def test_cmake_error_is_shown(series):
    with pytest.raises(UserError) as e:
        build(series, dataclasses.replace(CPU, extra=("-DCMAKE_CXX_COMPILER=/no/such/compiler",)))
    assert "could not configure" in str(e.value) and "/no/such/compiler" in str(e.value)


def test_relevant_lines_are_the_errors_and_not_the_thousand_others():
    lines = [f"[{n}/999] Building CXX object a{n}.o" for n in range(900)]
    lines[500:500] = ["FAILED: x.o", "/usr/bin/c++ " + "-Iinclude " * 100 + "-Werror=error", "x.cpp:3:1: error: no"]
    assert relevant_lines(lines) == ["x.cpp:3:1: error: no"]
    assert relevant_lines(["one", "two"]) == ["one", "two"]


# plans


@pytest.fixture
def cuda_machine(monkeypatch: pytest.MonkeyPatch):
    """A machine with CUDA 13 and the GPUs that a test gives it."""

    toolkit = toolchain.Cuda("/cuda/bin/nvcc", (13, 0), (75, 86, 90, 120), None)

    def machine(*gpus: str, cublas=([], ""), driver=([], ""), cuda=toolkit):
        monkeypatch.setattr(toolchain, "find_gpus", lambda: [toolchain.Gpu(f"GPU {arch}", arch) for arch in gpus])
        monkeypatch.setattr(toolchain, "find_cuda", lambda: cuda)
        monkeypatch.setattr(toolchain, "find_cublas", lambda _: cublas)
        monkeypatch.setattr(toolchain, "find_driver", lambda _: driver)

    return machine


def backend_of(ws: Workspace, options: Options) -> tuple[str, list[str]]:
    plan = make_plan(ws, options)
    return plan.backend, [w.partition("=")[2] for w in plan.configure if w.startswith("-DCMAKE_CUDA_ARCHITECTURES=")]


def test_backend_follows_the_machine(ws, cuda_machine, monkeypatch):
    monkeypatch.setattr(planning.sys, "platform", "linux")
    cuda_machine("120", "90", "120")
    assert backend_of(ws, Options()) == ("cuda", ["90;120"])
    assert backend_of(ws, Options(backend="cpu")) == ("cpu", [])
    assert backend_of(ws, Options(cuda_arch="86")) == ("cuda", ["86"])
    assert backend_of(ws, Options(cuda_arch="native")) == ("cuda", ["90;120"])
    cuda_machine()
    assert backend_of(ws, Options()) == ("cpu", [])
    assert backend_of(ws, Options(cuda_arch="sm_90")) == ("cuda", ["90"])
    cuda_machine("90", cuda=None)
    plan = make_plan(ws, Options())
    assert plan.backend == "cpu" and "install the CUDA toolkit" in plan.reasons[0]
    monkeypatch.setattr(planning.sys, "platform", "darwin")
    cuda_machine(cuda=None)
    assert backend_of(ws, Options())[0] == "metal"


@pytest.mark.parametrize(
    ("gpus", "kwargs", "options", "said"),
    [
        ((), {}, Options(cuda_arch="native"), "nvidia-smi finds no GPU"),
        ((), {}, Options(backend="cuda"), "nvidia-smi finds no GPU"),
        ((), {"cuda": None}, Options(cuda_arch="120"), "needs nvcc"),
        ((), {"cublas": None}, Options(cuda_arch="120"), "-DCUDA_cublas_LIBRARY=FILE"),
        ((), {"driver": None}, Options(cuda_arch="120"), "-DGGML_CUDA_NO_VMM=ON"),
        ((), {}, Options(cuda_arch="103"), "not for 103"),
    ],
)
def test_cuda_build_that_cannot_work_says_why(ws, cuda_machine, gpus, kwargs, options, said):
    cuda_machine(*gpus, **kwargs)
    with pytest.raises(UserError, match=said):
        build(ws, options)
    assert not ws.made.exists()


def test_libraries_given_by_hand_are_not_asked_for(ws, cuda_machine):
    cuda_machine(cublas=None, driver=None)
    given = ("-DCUDA_cublas_LIBRARY=/x/libcublas.so", "-DGGML_CUDA_NO_VMM=ON")
    plan = make_plan(ws, Options(cuda_arch="120", extra=given))
    assert plan.problems == [] and plan.configure[-2:] == list(given)


def test_cuda_arch_with_another_backend_is_wrong(ws):
    with pytest.raises(UserError, match="--cuda-arch is for --backend cuda"):
        make_plan(ws, Options(backend="vulkan", cuda_arch="90"))


def test_nothing_is_downloaded_by_a_build(ws):
    plan = make_plan(ws, CPU)
    assert "-DLLAMA_USE_PREBUILT_UI=OFF" in plan.configure and "-DLLAMA_BUILD_UI=OFF" in plan.configure


# the command line


@pytest.fixture
def command(ws, monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_workspace", lambda: ws)

    def run(*words: str) -> tuple[int, str, str]:
        try:
            status = cli.main(list(words))
        except SystemExit as e:  # argparse
            status = int(e.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    "words", [("--cuda-arch", "86;120"), ("build", "--cuda-arch=86,120"), ("--cuda-arch", "12.0 sm_86")]
)
def test_dry_run_prints_the_cmake_lines_and_makes_nothing(ws, command, cuda_machine, words):
    cuda_machine()
    status, out, _ = command(*words, "--dry-run", "--jobs", "3", "--", "-DGGML_NATIVE=OFF", "-DX=a b")
    assert status == 0
    configure, compile_ = (shlex.split(line) for line in out.splitlines() if not line.startswith("build-fork:"))
    assert "-DCMAKE_CUDA_ARCHITECTURES=86;120" in configure and configure[-2:] == ["-DGGML_NATIVE=OFF", "-DX=a b"]
    assert compile_[1] == "--build" and compile_[compile_.index("--parallel") + 1] == "3"
    assert "backend cuda: --cuda-arch was given" in out
    assert not ws.made.exists()


def test_dry_run_shows_the_lines_also_where_the_build_would_not_work(ws, command, cuda_machine):
    cuda_machine(cuda=None)
    status, out, err = command("--cuda-arch", "120", "--dry-run")
    assert status == 0 and "-DCMAKE_CUDA_ARCHITECTURES=120" in out and "needs nvcc" in err


@pytest.mark.parametrize(
    "words",
    [
        ("--jobs", "0"),
        ("--jobs", "many"),
        ("--backend", "tpu"),
        ("fetch", "--", "-DX"),
        ("checkout", "--ui"),
        ("bild",),
    ],
)
def test_wrong_usage_ends_with_two(command, words):
    status, _, err = command(*words)
    assert status == 2 and "usage: build-fork" in err


def test_users_mistakes_end_with_one_and_a_message(command):
    status, _, err = command("--cuda-arch", "volta", "--dry-run")
    assert status == 1 and err.startswith("build-fork: --cuda-arch: 'volta'") and "Traceback" not in err


def test_commands_from_an_empty_checkout_to_a_validated_series(ws, upstream, command):
    assert command("fetch", "--source", str(upstream.sdist))[0] == 0
    assert command("checkout")[0] == 0
    commit(ws, "loop : one more", {"x.txt": "x\n"})
    status, out, _ = command("export")
    assert (status, out) == (0, "build-fork: patches/loop/0001-one-more.patch\n")
    status, out, _ = command("validate")
    assert status == 0 and out.splitlines()[0] == "ok  loop/0001-one-more.patch"
    (ws.patches / "series").write_text("")
    status, out, err = command("validate")
    assert status == 1 and "BAD loop/0001-one-more.patch: not listed" in out and "1 problem in patches/" in err
