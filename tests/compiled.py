"""C++ sources of the tests and tools, compiled where there is a compiler and a build with shared libraries."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def compiled(source: Path, out: Path, bin_dir: Path, *options: str | Path) -> Path:
    """`source` compiled to `out` with more options of the compiler; skips the test where that cannot be done."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or not (bin_dir / "libllama-common.so").exists():
        pytest.skip(f"{source.name} needs a C++ compiler and a build with shared libraries")
    subprocess.run([compiler, "-std=c++17", "-O1", source, "-o", out, *options], check=True)
    return out
