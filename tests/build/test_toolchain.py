"""What would stop a build after an hour is found before it starts, and said so that one can act on it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from dflash_tools.errors import UserError
from dflash_tools.fork import toolchain
from dflash_tools.fork.toolchain import Cuda


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A PATH of its own, and a function that puts programs on it. Nothing of this machine is found."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(toolchain, "find_tool", shutil.which)
    for name in ("CC", "CXX", "CUDACXX", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)

    def add(name: str, *lines: str, at: Path = folder) -> Path:
        at.mkdir(parents=True, exist_ok=True)
        (at / name).write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
        (at / name).chmod(0o755)
        return at / name

    return add


def add_nvcc(tools, version: str, archs: list[int], top: Path, at: Path | None = None) -> Path:
    """A program that answers what nvcc answers."""
    listed = " ".join(f"compute_{a}" for a in archs)
    body = (
        'case "$1" in',
        f'--version) echo "Cuda compilation tools, release {version}, V{version}.88";;',
        f'--list-gpu-arch) for a in {listed}; do echo "$a"; done;;',
        f'-v) echo "#$ _NVVM_BRANCH_=nvvm" >&2; echo "#$ TOP={top}/bin/.." >&2; exit 1;;',
        "esac",
    )
    return tools("nvcc", *body, **({"at": at} if at else {}))


# architectures


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("120", ("120",)),
        ("86;89;120", ("86", "89", "120")),
        ("120,86 89", ("86", "89", "120")),
        ("sm_90 compute_75", ("75", "90")),
        ("12.0;8.6", ("86", "120")),
        ("90a", ("90a",)),
        ("120f;100a-real;75-virtual", ("75-virtual", "100a-real", "120f")),
        ("89;89;8.9", ("89",)),
        ("10.3", ("103",)),
        ("SM_121", ("121",)),
        ("75;80;87;88;100;110", ("75", "80", "87", "88", "100", "110")),
    ],
)
def test_architectures_in_the_usual_spellings(text, archs):
    assert toolchain.parse_archs(text) == archs


@pytest.mark.parametrize(
    "text", ["61", "70", "122", "1200", "hopper", "90x", "9", "-1", "sm_", "86;x", "８６", "86-fast"]
)
def test_architecture_out_of_range_or_misspelt_is_refused(text):
    with pytest.raises(UserError, match="75 to 121"):
        toolchain.parse_archs(text)


@pytest.mark.parametrize("text", ["", " ", ";,"])
def test_no_architecture_at_all_is_refused(text):
    with pytest.raises(UserError, match="no architecture given"):
        toolchain.parse_archs(text)


def test_toolkit_too_old_for_the_architecture_names_the_one_that_is_not():
    cuda = Cuda("/x/nvcc", (12, 4), (50, 75, 80, 86, 89, 90), None)
    toolchain.check_archs(cuda, ("86", "90a"))
    with pytest.raises(
        UserError, match=r"nvcc is CUDA 12\.4 and compiles for 50, .* not for 120\. It takes CUDA 12\.8"
    ):
        toolchain.check_archs(cuda, ("86", "120"))


def test_toolkit_that_dropped_the_architecture_says_so():
    with pytest.raises(UserError, match="dropped"):
        toolchain.check_archs(Cuda("/x/nvcc", (14, 0), (90, 100), None), ("75",))


# tools


def test_toolkit_and_its_folder_are_found_behind_a_wrapper(tools, tmp_path):
    home = tmp_path / "cuda-13"
    (home / "bin").mkdir(parents=True)
    nvcc = add_nvcc(tools, "13.0", [75, 80, 120], home)
    assert toolchain.find_cuda() == Cuda(str(nvcc), (13, 0), (75, 80, 120), home)


def test_cudacxx_wins_over_the_path(tools, tmp_path, monkeypatch):
    add_nvcc(tools, "12.4", [75], tmp_path)
    other = add_nvcc(tools, "13.0", [120], tmp_path, at=tmp_path / "other")
    monkeypatch.setenv("CUDACXX", str(other))
    cuda = toolchain.find_cuda()
    assert cuda is not None and cuda.version == (13, 0)


def test_nvcc_that_does_not_run_is_no_toolkit(tools, monkeypatch):
    tools("nvcc", "exit 127")
    monkeypatch.setenv("CUDA_PATH", "/nonexistent")
    cuda = toolchain.find_cuda()
    assert cuda is None or cuda.nvcc == "/usr/local/cuda/bin/nvcc"


def test_gpus_and_their_architectures(tools):
    tools(
        "nvidia-smi", 'echo "NVIDIA H100 80GB HBM3, 9.0"', 'echo "NVIDIA GeForce RTX 5090, 12.0"', 'echo "[N/A], [N/A]"'
    )
    assert [(g.name, g.arch) for g in toolchain.find_gpus()] == [
        ("NVIDIA H100 80GB HBM3", "90"),
        ("NVIDIA GeForce RTX 5090", "120"),
    ]


def test_driver_that_is_not_loaded_means_no_gpus(tools):
    tools("nvidia-smi", 'echo "NVIDIA-SMI has failed, 9.0" ', "exit 9")
    assert toolchain.find_gpus() == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="library names of Linux")
def test_cublas_beside_nvcc_needs_no_arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda _: str(tmp_path / "no-packages"))
    cuda = Cuda("nvcc", (13, 0), (90,), tmp_path)
    lib, include = tmp_path / "targets" / "x86_64-linux" / "lib", tmp_path / "targets" / "x86_64-linux" / "include"
    for folder, name in ((lib, "libcublas.so"), (include, "cublas_v2.h")):
        folder.mkdir(parents=True)
        (folder / name).touch()
    assert toolchain.find_cublas(cuda) == ([], "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="library names of Linux")
@pytest.mark.parametrize(("major", "folder"), [(13, "cu13"), (12, "cublas")])
def test_cublas_of_the_python_package_is_named_to_cmake(tmp_path, monkeypatch, major, folder):
    monkeypatch.setattr(toolchain.sys, "path", [str(tmp_path)])
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda _: str(tmp_path / "other"))
    package = tmp_path / "nvidia" / folder
    (package / "lib").mkdir(parents=True)
    (package / "include").mkdir()
    for name in (f"lib/libcublas.so.{major}", f"lib/libcublasLt.so.{major}", "include/cublas_v2.h"):
        (package / name).touch()
    found = toolchain.find_cublas(Cuda("nvcc", (major, 0), (90,), tmp_path / "toolkit"))
    if found == ([], ""):
        pytest.skip("this machine has cuBLAS in a folder that cmake searches")
    assert found is not None
    assert f"-DCUDA_cublas_LIBRARY={package}/lib/libcublas.so.{major}" in found[0]
    assert f"-DCMAKE_CUDA_FLAGS=-isystem {package}/include" in found[0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="library names of Linux")
def test_driver_library_is_the_stub_or_the_driver_itself(tmp_path, monkeypatch, tools):
    cuda = Cuda("nvcc", (13, 0), (90,), tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    found = toolchain.find_driver(cuda)
    if found is not None:
        pytest.skip("this machine has an NVIDIA driver or stub in a folder of the system")
    driver = tmp_path / "driver" / "libcuda.so.1"
    driver.parent.mkdir()
    driver.touch()
    tools("ldconfig", f'echo "	libcuda.so.1 (libc6,x86-64) => {driver}"')
    found = toolchain.find_driver(cuda)
    assert found is not None and found[0] == [f"-DCUDA_cuda_driver_LIBRARY={driver}"]
    (tmp_path / "lib64" / "stubs").mkdir(parents=True)
    (tmp_path / "lib64" / "stubs" / "libcuda.so").touch()
    assert toolchain.find_driver(cuda) == ([], "")


def test_no_cmake_and_old_cmake(tools):
    with pytest.raises(UserError, match="cmake is not installed"):
        toolchain.find_cmake((3, 14))
    cmake = tools("cmake", "echo 'cmake version 3.13.4'")
    with pytest.raises(UserError, match=r"is version 3\.13\.4; this build needs 3\.14"):
        toolchain.find_cmake((3, 14))
    tools("cmake", "echo 'cmake version 3.25.1'")
    assert toolchain.find_cmake((3, 18), ("90a", "120")) == str(cmake)
    with pytest.raises(UserError, match=r"the architecture 120f needs 3\.31\.8"):
        toolchain.find_cmake((3, 18), ("86", "120f"))


def test_no_compiler(tools, monkeypatch):
    with pytest.raises(UserError, match=r"there is no c\+\+, g\+\+ or clang\+\+"):
        toolchain.find_compiler()
    tools("g++", "echo 'g++ (Debian) 12.2.0'")
    with pytest.raises(UserError, match="no C compiler"):
        toolchain.find_compiler()
    tools("gcc")
    assert toolchain.find_compiler().name == "g++ (Debian) 12.2.0"
    monkeypatch.setenv("CXX", "clang++-99 -stdlib=libc++")
    with pytest.raises(UserError, match=r"\$CXX names clang\+\+-99"):
        toolchain.find_compiler()


def test_generator_is_ninja_else_make_else_an_error(tools):
    with pytest.raises(UserError, match="neither ninja nor make"):
        toolchain.find_generator()
    tools("make")
    assert toolchain.find_generator() == "Unix Makefiles"
    tools("ninja")
    assert toolchain.find_generator() == "Ninja"


# cores, memory, disk


@pytest.mark.parametrize(("cores", "free", "jobs"), [(16, 64, 16), (16, 9, 4), (2, 64, 2), (8, 1, 1), (8, None, 8)])
def test_jobs_follow_cores_and_free_memory(monkeypatch, cores, free, jobs):
    monkeypatch.setattr(toolchain.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(toolchain, "free_memory", lambda: None if free is None else free << 30)
    assert toolchain.default_jobs() == jobs


def test_full_disk_is_said_with_both_sizes(tmp_path):
    toolchain.check_disk(tmp_path, 1)
    with pytest.raises(UserError, match=r"GB free, this build needs about 1000000\.0 GB"):
        toolchain.check_disk(tmp_path, 10**15)
