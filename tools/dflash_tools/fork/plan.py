"""What a build will be: chosen, checked against this machine, and written down as command lines, before it is made.

The folder of a build is named by the hash of all that goes into it: the pinned commit, the patches, the options, the
compiler, and the features of the CPU.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dflash_tools.errors import UserError, join_words
from dflash_tools.fork import toolchain
from dflash_tools.fork.ctest import ctest_programs
from dflash_tools.fork.toolchain import find_tool
from dflash_tools.fork.workspace import Workspace

BACKENDS = ("cpu", "cuda", "vulkan", "metal", "hip")
PROGRAMS = ("llama-server", "llama-cli", "llama-speculative-simple", "llama-quantize")
TARGETS = (*PROGRAMS, "llama-bench", "test-backend-ops")

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What the user chose. None means: choose what fits this machine."""

    backend: str | None = None
    cuda_arch: str | None = None
    jobs: int | None = None
    ui: bool = False
    tests: bool = False
    work_tree: bool = False
    upstream: bool = False  # the pinned source without patches
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A build before it is made: the folder, the command lines, the reasons for what was chosen, and what stops it."""

    folder: Path
    backend: str
    configure: list[str]
    compile: list[str]
    targets: tuple[str, ...]
    inputs: dict[str, object]
    reasons: list[str]
    problems: list[str]
    disk: int

    @property
    def bin(self) -> Path:
        return self.folder / "bin"


def make_plan(ws: Workspace, options: Options) -> Plan:
    """Choose what is left open, write the command lines, and look for all that would stop the build later.

    What stops it is in `problems`, so that a dry run can show the lines all the same. Raises UserError only for options
    that make no sense on any machine.
    """
    if options.upstream and (options.tests or options.work_tree):
        raise UserError(
            "--upstream builds the pinned source without patches, to measure against: "
            f"{'--tests' if options.tests else '--work-tree'} is about the patches. Leave one of the two out."
        )
    found = _Findings()
    backend, archs = _choose_backend(options, found)
    cmake = (
        found.of(lambda: toolchain.find_cmake({"cuda": (3, 18), "hip": (3, 21)}.get(backend, (3, 14)), archs))
        or "cmake"
    )
    compiler = found.of(toolchain.find_compiler)
    generator = found.of(toolchain.find_generator) or "Ninja"
    patches = _patches_hash(ws)
    inputs: dict[str, object] = {"commit": ws.pin.commit, "compiler": compiler.name if compiler else ""}
    if not (options.work_tree or options.upstream):
        inputs["patches"] = patches
    defines = {
        "CMAKE_BUILD_TYPE": "Release",
        "BUILD_SHARED_LIBS": "ON",
        "LLAMA_BUILD_TESTS": "ON",
        "LLAMA_BUILD_UI": "ON" if options.ui else "OFF",
        "LLAMA_USE_PREBUILT_UI": "OFF",  # it would be downloaded
        "LLAMA_BUILD_COMMIT": ws.pin.commit[:9] + _commit_suffix(options, patches),
        "GGML_METAL": "ON" if backend == "metal" else "OFF",
    }
    arguments: list[str] = []
    if backend == "cuda":
        defines |= {"GGML_CUDA": "ON", "CMAKE_CUDA_ARCHITECTURES": ";".join(archs)}
        if cuda := toolchain.find_cuda():
            inputs["cuda"] = toolchain.dotted(cuda.version)
            if not shutil.which("nvcc"):
                defines["CMAKE_CUDA_COMPILER"] = cuda.nvcc
            arguments += found.of(lambda: _cublas_arguments(cuda, options.extra, found)) or []
            arguments += found.of(lambda: _driver_arguments(cuda, options.extra, found)) or []
    elif backend in ("vulkan", "hip"):
        defines[f"GGML_{backend.upper()}"] = "ON"
        found.of(lambda: _need_program({"vulkan": "glslc", "hip": "hipconfig"}[backend], f"--backend {backend}"))
    if options.ui:
        found.of(lambda: _need_program("npm", "--ui"))
    if not any(re.match(r"-D\s*GGML_NATIVE(:BOOL)?=(OFF|0|NO|FALSE)$", word, re.IGNORECASE) for word in options.extra):
        inputs["cpu"] = toolchain.cpu_features()
    cache = find_tool("ccache") or find_tool("sccache")
    found.reasons.append(
        f"{Path(cache).name} caches compilations" if cache else "no ccache: every build compiles all anew"
    )
    arguments = ["-G", generator, *(f"-D{k}={v}" for k, v in defines.items()), *arguments, *options.extra]
    inputs["arguments"] = arguments
    name = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
    folder = (ws.upstream if options.upstream else ws.made) / f"build-{'work-' if options.work_tree else ''}{name}"
    source = ws.upstream / ws.tree.name if options.upstream else ws.tree
    jobs = options.jobs or toolchain.default_jobs()
    targets = (*TARGETS, *ctest_programs(ws)) if options.tests else TARGETS
    return Plan(
        folder=folder,
        backend=backend,
        configure=[cmake, "-S", str(source), "-B", str(folder), *arguments],
        compile=[cmake, "--build", str(folder), "--parallel", str(jobs), "--target", *targets],
        targets=targets,
        inputs=inputs,
        reasons=found.reasons,
        problems=found.problems,
        disk=_disk_needed(backend, len(archs), options.tests),
    )


@dataclass
class _Findings:
    """Collects, while a plan is made, why things were chosen and what will not work."""

    reasons: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def of(self, question: Callable[[], T]) -> T | None:
        """The answer, or None when it is a problem."""
        try:
            return question()
        except UserError as e:
            self.problems.append(str(e))
            return None


def _choose_backend(options: Options, found: _Findings) -> tuple[str, tuple[str, ...]]:
    """The backend and the CUDA architectures, with a reason for each choice."""
    if options.cuda_arch and options.backend not in (None, "cuda"):
        raise UserError(f"--cuda-arch is for --backend cuda, not for {options.backend}")
    asked = None if options.cuda_arch in (None, "native") else toolchain.parse_archs(options.cuda_arch)
    ask_gpu = options.backend in (None, "cuda")
    gpus, cuda = (toolchain.find_gpus(), toolchain.find_cuda()) if ask_gpu else ([], None)
    backend, reason = _backend_and_reason(options, cuda, gpus)
    found.reasons.append(f"backend {backend}: {reason}")
    if backend == "metal" and sys.platform != "darwin":
        found.problems.append("--backend metal builds on macOS only")
    if backend != "cuda":
        return backend, ()
    if cuda is None:
        found.problems.append(
            "a CUDA build needs nvcc, and it is not on the PATH, in $CUDA_PATH or in /usr/local/cuda. Install the CUDA "
            "toolkit, set CUDACXX to its nvcc, or build with --backend cpu."
        )
    archs = asked
    if archs is None and gpus:
        archs = toolchain.parse_archs(";".join(gpu.arch for gpu in gpus))
        names = join_words(list(dict.fromkeys(gpu.name for gpu in gpus)))
        found.reasons.append(f"CUDA architecture {';'.join(archs)}: {names}")
    elif archs is None:
        found.problems.append(
            "nvidia-smi finds no GPU here, so there is none to build for. Name the architecture of the machine that "
            "will run it: --cuda-arch 120 (several: --cuda-arch '86;89;120')."
        )
    if cuda and archs:
        found.of(lambda: toolchain.check_archs(cuda, archs))
    return backend, archs or ("native",)


def _backend_and_reason(options: Options, cuda: toolchain.Cuda | None, gpus: list[toolchain.Gpu]) -> tuple[str, str]:
    if options.backend:
        return options.backend, "--backend was given"
    if options.cuda_arch:
        return "cuda", "--cuda-arch was given"
    if cuda and gpus:
        return "cuda", f"nvcc {toolchain.dotted(cuda.version)} and {gpus[0].name} are here"
    if sys.platform == "darwin":
        return "metal", "this is macOS"
    if gpus:
        return "cpu", f"{gpus[0].name} is here but no nvcc; install the CUDA toolkit to use it"
    if cuda:
        return "cpu", "nvcc is here but no GPU; --cuda-arch 120 (say) builds for another machine"
    return "cpu", "neither nvcc nor an NVIDIA GPU is here"


def _cublas_arguments(cuda: toolchain.Cuda, extra: tuple[str, ...], found: _Findings) -> list[str]:
    if any("CUDA_cublas_LIBRARY" in word for word in extra):
        return []
    cublas = toolchain.find_cublas(cuda)
    if cublas is None:
        major = cuda.version[0]
        package = "nvidia-cublas" if major >= 13 else f"nvidia-cublas-cu{major}"
        raise UserError(
            f"{cuda.nvcc} has no cuBLAS beside it (libcublas and cublas_v2.h under {cuda.root}), and llama.cpp links "
            f"it. Install it with the toolkit (Debian: libcublas-dev-{major}-{cuda.version[1]}) or with 'pip install "
            f"{package}', or say where it is: build-fork ... -- -DCUDA_cublas_LIBRARY=FILE "
            "-DCUDA_cublasLt_LIBRARY=FILE '-DCMAKE_CUDA_FLAGS=-isystem FOLDER'."
        )
    arguments, reason = cublas
    found.reasons += [reason] if reason else []
    return arguments


def _driver_arguments(cuda: toolchain.Cuda, extra: tuple[str, ...], found: _Findings) -> list[str]:
    if any("GGML_CUDA_NO_VMM" in word or "CUDA_cuda_driver_LIBRARY" in word for word in extra):
        return []
    driver = toolchain.find_driver(cuda)
    if driver is None:
        raise UserError(
            f"no libcuda to link with: no stub under {cuda.root} and no driver. Install the toolkit's (Debian: "
            f"cuda-driver-dev-{cuda.version[0]}-{cuda.version[1]}), or build without virtual memory management, which "
            "fragments the memory of the GPU more: build-fork ... -- -DGGML_CUDA_NO_VMM=ON."
        )
    arguments, reason = driver
    found.reasons += [reason] if reason else []
    return arguments


def _need_program(name: str, wanted_by: str) -> None:
    if not find_tool(name):
        raise UserError(
            f"{wanted_by} needs {name}, which is not on the PATH. Install it, or build without {wanted_by}."
        )


def _commit_suffix(options: Options, patches: str) -> str:
    """What `--version` adds to the pinned commit, so that a build says what it was made of."""
    return "" if options.upstream else "-work" if options.work_tree else f"-{patches[:7]}"


def _patches_hash(ws: Workspace) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in ws.patches.rglob("*") if p.is_file()):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(ws.patches).as_posix()} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def _disk_needed(backend: str, archs: int, tests: bool) -> int:
    """Bytes a build takes at most, with the source and without the compiler cache."""
    return {"cuda": 700 + 500 * archs, "hip": 1500, "vulkan": 900}.get(backend, 500) * 10**6 + 400 * 10**6 * tests
