"""What this machine can build: tools, GPUs, CUDA architectures, cores, memory, disk.

Everything that can go wrong after an hour of compiling and can be known before is asked here.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from dflash_tools.errors import UserError, join_words

# Compute capability -> first CUDA toolkit that compiles for it (NVIDIA's nvcc documentation, GPU feature list).
# 101 was renamed 110 by CUDA 13; a toolkit that lists its architectures is believed before this table.
FIRST_CUDA = {
    75: (10, 0),
    80: (11, 0),
    86: (11, 1),
    87: (11, 4),
    88: (13, 0),
    89: (11, 8),
    90: (11, 8),
    100: (12, 8),
    101: (12, 8),
    103: (12, 9),
    110: (13, 0),
    120: (12, 8),
    121: (12, 9),
}
MEMORY_PER_JOB = 2 << 30  # bytes; the largest compilations (server, test-backend-ops, CUDA kernels) take 1.2 to 2 GB


def find_tool(name: str) -> str | None:
    """Path of a program, also of one that pip installed beside this Python (a venv that is not activated)."""
    beside = os.pathsep.join([sysconfig.get_path("scripts"), str(Path(sys.executable).parent)])
    return shutil.which(name) or shutil.which(name, path=beside)


def output_of(*words: str | Path) -> str | None:
    """What a command prints (both streams), or None when it is not there or fails. For questions, not for work."""
    try:
        done = subprocess.run(
            [str(w) for w in words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout + done.stderr if done.returncode == 0 else None


def version_in(text: str | None, pattern: str = r"(\d+)\.(\d+)(?:\.(\d+))?") -> tuple[int, ...]:
    """The first version number in a text as numbers, or () when there is none."""
    match = re.search(pattern, text or "")
    return tuple(int(n) for n in match.groups() if n) if match else ()


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


@dataclass(frozen=True)
class Compiler:
    """The C++ compiler cmake will take; `name` is the first line of what it says about itself."""

    path: str
    name: str


def find_compiler() -> Compiler:
    """As cmake looks: $CXX, else c++, g++, clang++. Raises UserError when there is none or no C compiler beside it."""
    wanted = os.environ.get("CXX", "").split()
    candidates = [wanted[0]] if wanted else ["c++", "g++", "clang++"]
    path = next(filter(None, map(shutil.which, candidates)), None)
    if path is None:
        what = f"$CXX names {wanted[0]}, which is not there" if wanted else "there is no c++, g++ or clang++"
        raise UserError(f"no C++ compiler: {what}. Install one, on Debian with 'apt install g++'.")
    c = os.environ.get("CC", "").split()
    if not any(map(shutil.which, c[:1] or ["cc", "gcc", "clang"])):
        raise UserError("no C compiler: there is no cc, gcc or clang. Install one, on Debian with 'apt install gcc'.")
    said = (output_of(path, "--version") or "").strip().splitlines()
    return Compiler(path, said[0] if said else path)


def find_cmake(at_least: tuple[int, int], archs: tuple[str, ...] = ()) -> str:
    """Path of cmake. Raises UserError when it is missing, or too old for the project or for CUDA's `archs`."""
    path = find_tool("cmake")
    hint = "Install it, on Debian with 'apt install cmake', anywhere with 'pip install cmake'."
    if path is None:
        raise UserError(f"cmake is not installed. {hint}")
    version = version_in(output_of(path, "--version"))
    if version[:2] < at_least:
        raise UserError(f"{path} is version {dotted(version)}; this build needs {dotted(at_least)} or newer. {hint}")
    if (family := next((arch for arch in archs if "f" in arch), None)) and version < (3, 31, 8):
        raise UserError(f"{path} is version {dotted(version)}; the architecture {family} needs 3.31.8 or newer. {hint}")
    return path


def find_generator() -> str:
    """Ninja where it is installed, else Make. Raises UserError when there is neither."""
    if find_tool("ninja"):
        return "Ninja"
    if shutil.which("make"):
        return "Unix Makefiles"
    raise UserError("neither ninja nor make is installed. Install one, on Debian with 'apt install ninja-build'.")


# CUDA


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit. `archs` are the compute capabilities that its nvcc compiles for; `root` holds include and lib."""

    nvcc: str
    version: tuple[int, ...]
    archs: tuple[int, ...]
    root: Path | None


@dataclass(frozen=True)
class Gpu:
    name: str
    arch: str


def find_cuda() -> Cuda | None:
    """The toolkit of $CUDACXX, the PATH, $CUDA_PATH or /usr/local/cuda, in this order, or None."""
    places = [os.environ.get("CUDACXX", ""), shutil.which("nvcc") or ""]
    places += [str(Path(p) / "bin" / "nvcc") for p in (os.environ.get("CUDA_PATH", ""), "/usr/local/cuda") if p]
    for nvcc in filter(None, places):
        version = version_in(output_of(nvcc, "--version"), r"release (\d+)\.(\d+)")
        if version:
            listed = re.findall(r"compute_(\d+)", output_of(nvcc, "--list-gpu-arch") or "")
            archs = sorted(map(int, listed)) or [a for a, first in FIRST_CUDA.items() if first <= version[:2]]
            return Cuda(nvcc, version, tuple(archs), _cuda_root(nvcc))
    return None


def _cuda_root(nvcc: str) -> Path | None:
    """Where nvcc says it lives, which for a wrapper script is not where it was found (cmake asks the same way)."""
    try:
        done = subprocess.run([nvcc, "-v", "--dryrun", "no-such-file.cu"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    top = re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
    return Path(top[1].strip()).resolve() if top else None


def find_gpus() -> list[Gpu]:
    """NVIDIA GPUs of this machine with their compute capability, such as `120`, as nvidia-smi tells it."""
    said = output_of("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader") or ""
    found = re.findall(r"^(.+), (\d+)\.(\d)$", said, re.MULTILINE)
    return [Gpu(name, f"{major}{minor}") for name, major, minor in found]


def parse_archs(text: str) -> tuple[str, ...]:
    """CUDA architectures in any usual spelling (`120`, `sm_120`, `12.0`, `90a`, `86;89`, `86,89`), sorted, once each.

    Raises UserError for what is not a compute capability from 75 to 121.
    """
    archs: set[str] = set()
    for word in filter(None, re.split(r"[;,\s]+", text.strip())):
        match = re.fullmatch(
            r"(?:sm_|compute_)?(?:(\d{2,3})|(\d{1,2})\.(\d))([af]?)(-real|-virtual)?", word.lower(), re.ASCII
        )
        number = int(match[1] or match[2] + match[3]) if match else 0
        if not match or number not in FIRST_CUDA:
            known = ", ".join(map(str, FIRST_CUDA))
            raise UserError(
                f"--cuda-arch: {word!r} is not a GPU architecture this project builds for (75 to 121: {known}). "
                "nvidia-smi --query-gpu=compute_cap --format=csv shows yours; 12.0 there is 120 here."
            )
        archs.add(f"{number}{match[4]}{match[5] or ''}")
    if not archs:
        raise UserError("--cuda-arch: no architecture given; an example is --cuda-arch 120")
    return tuple(sorted(archs, key=lambda arch: (int(re.match(r"\d+", arch)[0]), arch)))  # type: ignore[index]


def check_archs(cuda: Cuda, archs: tuple[str, ...]) -> None:
    """Raises UserError when the toolkit does not compile for one of `archs`, saying which toolkit does."""
    for arch in archs:
        number = int(re.match(r"\d+", arch)[0])  # type: ignore[index]
        if number in cuda.archs:
            continue
        first = FIRST_CUDA[number]
        told = f"{cuda.nvcc} is CUDA {dotted(cuda.version)} and compiles for {join_words(cuda.archs)}, not for {arch}. "
        if cuda.version[:2] < first:
            raise UserError(f"{told}It takes CUDA {dotted(first)} or newer: install it, or set CUDACXX to its nvcc.")
        raise UserError(f"{told}This toolkit has dropped that architecture: take an older one, or another --cuda-arch.")


def find_cublas(cuda: Cuda) -> tuple[list[str], str] | None:
    """How to tell cmake where cuBLAS is: (cmake arguments, what to print), or None when it is not on this machine.

    Beside nvcc or in the system's folders cmake finds it by itself. The packages of the Python index (nvidia-cublas for
    CUDA 13, nvidia-cublas-cu12) keep it where cmake does not look, so their files are named one by one.
    """
    libs, includes = _cuda_folders(cuda)
    if any(_library(lib, "cublas", None) for lib in libs) and any((i / "cublas_v2.h").is_file() for i in includes):
        return [], ""
    major = cuda.version[0]
    for site in dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path]):
        for package in (Path(site) / "nvidia" / f"cu{major}", Path(site) / "nvidia" / "cublas"):
            files = {name: _library(package / "lib", name, major) for name in ("cublas", "cublasLt")}
            if all(files.values()) and (package / "include" / "cublas_v2.h").is_file():
                arguments = [f"-DCUDA_{name}_LIBRARY={file}" for name, file in files.items()]
                # -isystem comes after the toolkit's own headers, which must win where both have a file
                arguments.append(f"-DCMAKE_CUDA_FLAGS=-isystem {package / 'include'}")
                return arguments, f"cuBLAS is not beside nvcc; taking the Python package's in {package}"
    return None


def find_driver(cuda: Cuda) -> tuple[list[str], str] | None:
    """How to tell cmake where NVIDIA's driver library is, as `find_cublas` does for cuBLAS.

    A complete toolkit has a stub to link with. Machines with a driver only have libcuda.so.1, which cmake does not take
    by itself.
    """
    libs, _ = _cuda_folders(cuda)
    if any(_library(folder, "cuda", None) for lib in libs for folder in (lib / "stubs", lib)):
        return [], ""
    listed = re.findall(
        r"libcuda\.so\.1 .*=> (\S+)", output_of("ldconfig", "-p") or output_of("/sbin/ldconfig", "-p") or ""
    )
    folders = [*os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep), "/usr/local/nvidia/lib64", "/usr/lib/wsl/lib"]
    for file in [*map(Path, listed), *(Path(folder) / "libcuda.so.1" for folder in folders if folder)]:
        if file.is_file():
            return [f"-DCUDA_cuda_driver_LIBRARY={file}"], f"the toolkit has no libcuda stub; linking with {file}"
    return None


def _cuda_folders(cuda: Cuda) -> tuple[list[Path], list[Path]]:
    """Folders in which cmake looks for libraries and for headers of CUDA."""
    roots = [r for r in (cuda.root, Path("/usr"), Path("/usr/local/cuda")) if r]
    libs = [r / sub for r in roots for sub in ("lib64", "lib", f"lib/{platform.machine()}-linux-gnu", "lib/x64")]
    libs += [lib for r in roots for lib in r.glob("targets/*/lib")]
    includes = [r / "include" for r in roots] + [i for r in roots for i in r.glob("targets/*/include")]
    return libs, includes


def _library(folder: Path, name: str, major: int | None) -> Path | None:
    names = [f"lib{name}.so.{major}"] if major else [f"lib{name}.so", f"lib{name}_static.a", f"{name}.lib"]
    return next((folder / n for n in names if (folder / n).exists()), None)


# Cores, memory, disk


def default_jobs() -> int:
    """Compilers to run at once: a core each, as far as the free memory goes (2 GB each), at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = free_memory()
    return max(1, min(cores, memory // MEMORY_PER_JOB if memory is not None else cores))


def free_memory() -> int | None:
    """Bytes that new processes can have, in this container too; None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
        free = int(re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)[1]) << 10  # type: ignore[index]
    except (OSError, TypeError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        free = min(free, max(0, int(limit) - used)) if limit != "max" else free
    except (OSError, ValueError):
        pass
    return free


def cpu_features() -> str:
    """A short hash of what `-march=native` means here: objects compiled for it must not travel to another CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        features = re.findall(r"^(?:flags|Features|CPU part)\s*:.*$", text, re.MULTILINE)
    except OSError:
        features = [output_of("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()]
    return hashlib.sha256("\n".join([platform.machine(), *sorted(set(features))]).encode()).hexdigest()[:16]


def check_disk(folder: Path, needed: int) -> None:
    """Raises UserError when the file system of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {free / 1e9:.1f} GB free, this build needs about {needed / 1e9:.1f} GB. "
            "Make room (older build folders, .fork/build-*, can go), or clone to a larger disk."
        )
