"""The program that times products of few columns runs on whatever device is there, and says what it cannot do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from compiled import compiled

SOURCE = Path(__file__).resolve().parents[2] / "ci" / "gpu" / "products.cpp"


@pytest.fixture(scope="module")
def products(bin_dir: Path, source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    libraries = ("-L", bin_dir, "-lggml", "-lggml-base", f"-Wl,-rpath,{bin_dir}")
    out = tmp_path_factory.mktemp("products") / "products"
    return compiled(SOURCE, out, bin_dir, "-Wall", "-Werror", "-I", source_tree / "ggml/include", *libraries)


def run(program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *words], capture_output=True, text=True)


def test_a_line_for_each_shape_and_number_of_columns(products):
    done = run(products, "q4_K:64x256", "q8_0:32x512", "-n", "1,3", "-r", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[1:]
    assert [re.match(r"(\S+) +(\d+) columns:", line).groups() for line in lines] == [
        ("q4_K:64x256", "1"), ("q4_K:64x256", "3"), ("q8_0:32x512", "1"), ("q8_0:32x512", "3"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["q4_K:64"], "'q4_K:64' is not TYPE:ROWSxK"),
        (["q4_Z:64x256"], "no type is called 'q4_Z'"),
        (["q4_K:64x100"], "rows of q4_K hold multiples of 256"),
        (["q4_K:64x99999999"], "is not TYPE:ROWSxK"),
        (["-n", "0"], "usage: products"),
        (["--what"], "usage: products"),
    ],
)
def test_what_it_cannot_do_is_said(products, words, said):
    done = run(products, *words)
    assert done.returncode == 2
    assert said in done.stderr
