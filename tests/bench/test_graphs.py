"""Graphs are timed by events in them. The GPU is a fake whose clock the program moves (fake_cuda)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from compiled import compiled

GPU = Path(__file__).resolve().parents[2] / "ci" / "gpu"
FAKE = Path(__file__).parent / "fake_cuda"


def test_what_lies_between_graphs_is_told_and_graphs_last_as_long_as_they_do(tmp_path, bin_dir):
    runtime = compiled(FAKE / "cudart.cpp", tmp_path / "libcudart.so", bin_dir, "-shared", "-fPIC")
    found = f"-Wl,-rpath,{tmp_path}"
    program = compiled(FAKE / "launch_graphs.cpp", tmp_path / "launch_graphs", bin_dir, runtime, found)
    recorder = compiled(
        GPU / "graphs.cpp", tmp_path / "libgraphs.so", bin_dir, "-shared", "-fPIC", "-Wl,-z,lazy", "-I", FAKE, "-ldl"
    )
    named = os.environ | {"LD_PRELOAD": str(recorder), "GRAPHS_OUT": str(tmp_path / "launches")}
    subprocess.run([program], env=named, check=True)

    (recorded,) = tmp_path.glob("launches.*.txt")
    lines = recorded.read_text().splitlines()
    assert lines[0].startswith(f"# {program}")
    launches = sorted(tuple(map(int, line.split()[1:4])) for line in lines[1:])
    # a graph has two nodes more than kernels
    lasted = [(duration, nodes) for _, duration, nodes in launches]
    assert lasted.count((3_000_000, 5)) >= 10 and lasted.count((1_000_000, 4)) >= 10
    assert set(lasted) == {(3_000_000, 5), (1_000_000, 4)}

    words = [sys.executable, GPU / "kernels.py", recorded, "--idle"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "4750 us from launch to launch of graph 1, of which idle 750.0 us" in shown.stdout
