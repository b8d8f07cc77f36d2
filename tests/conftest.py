"""What every test of the built fork starts from: its programs, its source, and the tiny pairs as GGUF."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from dflash_tools.errors import UserError
from dflash_tools.fork.build import bin_dir as built_programs
from dflash_tools.tiny import CHECKOUT, TinyPair, cached_gguf, convert_tiny_drafter, convert_tiny_target

# Tests run side by side. Two threads of a tiny matrix each, on two cores, mostly wait for each other: 181 s instead of
# 20 s were seen. For torch here, in the workers and in every program started from a test; read when torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# and programs that were asked for more threads do not spin while they wait
os.environ.setdefault("GOMP_SPINCOUNT", "0")

MADE = CHECKOUT / ".fork"
CONVERTER = CHECKOUT / "convert" / "dflash_convert"

# f32: verify rows and single rows go through different kernels, whose sums differ by rounding. In f32 that is
# about 1e-6 and flips no token. With f16 weights every activation is rounded to f16 first, and near-ties turn around.
OUTTYPE = "f32"


@pytest.fixture(scope="session")
def bin_dir() -> Path:
    """Programs of the last build. Another build can be put to the test with DFLASH_TEST_BIN."""
    if other := os.environ.get("DFLASH_TEST_BIN"):
        return Path(other)
    try:
        return built_programs()
    except UserError as cause:
        pytest.fail(f"these tests need the built fork ({cause})", pytrace=False)


@pytest.fixture(scope="session")
def on_gpu(bin_dir: Path) -> bool:
    """Whether the programs compute on a GPU, whose products of few rows round f32 to TF32."""
    told = subprocess.run([bin_dir / "llama-server", "--list-devices"], capture_output=True, text=True, check=True)
    return re.search(r"^ +\w+: .*MiB", told.stdout, re.MULTILINE) is not None


@pytest.fixture(scope="session")
def source_tree() -> Path:
    """The patched llama.cpp that the programs were built from."""
    tree = MADE / "llama.cpp"
    if not tree.is_dir():
        pytest.fail(f"{tree} is not there: run build-fork first", pytrace=False)
    return tree


@pytest.fixture(scope="session")
def tiny_gguf() -> Callable[[str, str], Path]:
    """`tiny_gguf("qwen3", "target")` or `("qwen3", "dflash")`: path of the GGUF in f32, converted once per content."""

    def convert(family: str, part: str) -> Path:
        pair = TinyPair(family, "dflash" if part == "target" else part)
        make, sources = (
            (convert_tiny_target, [pair.target])
            if part == "target"
            else (convert_tiny_drafter, [pair.drafter, pair.target])
        )
        name = f"{family}-{part}-{OUTTYPE}.gguf"
        return cached_gguf([*sources, CONVERTER], MADE / "test-models", name, lambda path: make(pair, path, OUTTYPE))

    return cache(convert)
