"""Kernels of a process are counted by graph."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[2] / "ci" / "gpu" / "kernels.py"

# two launches of graph 7 whose steps lie in no order, one of graph 9, a kernel outside of graphs
RECORDED = """\
# llama-server -m target.gguf
N 0 _Z3addPf
N 1 _Z8multiplyPfS_
K 1000 2000 7 1 0
K 4000 3000 7 1 1
C 3000 500 7 1 8
K 24000 5000 7 2 1
C 23000 500 7 2 8
K 21000 2000 7 2 0
K 40000 9000 9 3 0
K 60000 9000 0 4 0
X what a later version may add
"""


def show(tmp_path: Path, *words: str, recorded: str = RECORDED, more: str = "") -> str:
    (tmp_path / "kernels.txt").write_text(recorded + more)
    done = subprocess.run(
        [sys.executable, KERNELS, tmp_path / "kernels.txt", *words], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_graph_is_shown_by_the_medians_of_its_launches(tmp_path):
    lines = show(tmp_path, "--least", "2").splitlines()
    assert lines[0] == "llama-server -m target.gguf"
    assert lines[1] == "3 nodes, 2 launches, 7 us from first to last, kernels 6 us"
    assert [line.split() for line in lines[2:]] == [
        ["4.0", "us", "1", "x", "multiply"],
        ["2.0", "us", "1", "x", "add"],
        ["0.5", "us", "1", "x", "copy", "on", "the", "device"],
    ]


def test_graphs_that_were_launched_seldom_are_left_out(tmp_path):
    assert "1 nodes, 1 launches" in show(tmp_path, "--least", "1")
    assert len(show(tmp_path, "--least", "3").splitlines()) == 1


def test_a_part_adds_up_the_kernels_whose_names_match(tmp_path):
    assert "2.5 us  small" in show(tmp_path, "--least", "2", "--part", "small=add|copy")


def test_idle_is_what_lies_between_two_launches_with_nothing_on_the_gpu(tmp_path):
    lines = show(tmp_path, "--least", "2", "--idle").splitlines()
    # from 1 to 21 us: steps to 3.5, one from 4 to 7, then nothing until the graph begins anew
    assert lines[1] == "20 us from launch to launch of graph 1, of which idle 14.5 us (quarters 14.5, 14.5)"
    assert lines[2].split() == ["14.5", "us", "graph", "1", "(3", "nodes)", "->", "graph", "1", "(3", "nodes)"]


def test_what_runs_at_the_same_time_is_not_idle_twice(tmp_path):
    overlapped = "K 8000 1000 0 5 0\nK 8500 2500 0 6 1\n"
    lines = show(tmp_path, "--least", "2", "--idle", more=overlapped).splitlines()
    assert lines[1] == "20 us from launch to launch of graph 1, of which idle 11.5 us (quarters 11.5, 11.5)"
    assert lines[2].split()[0] == "10.0" and "multiply -> graph 1" in lines[2]
    assert lines[3].split()[0] == "1.0" and lines[3].endswith("-> add")


def test_the_longest_stretch_outside_of_graphs_is_added_up(tmp_path):
    prompt = "K 100000 9000 0 5 1\nK 110000 1000 0 6 1\nK 111000 500 0 6 0\n"
    lines = show(tmp_path, "--outside", "0.00001", more=prompt).splitlines()
    assert lines[1] == "outside of graphs: 12 us from first to last, kernels 10 us"
    assert [line.split() for line in lines[2:]] == [
        ["10.0", "us", "2", "x", "multiply"],
        ["0.5", "us", "1", "x", "add"],
    ]


def test_idle_is_told_of_the_first_graph_that_is_shown_by_its_number(tmp_path):
    long_once = "K 200000 90000 11 9 1\n"  # the longest, but launched only once
    lines = show(tmp_path, "--least", "2", "--idle", more=long_once).splitlines()
    assert lines[1].startswith("20 us from launch to launch of graph 1")
    assert lines[2].split()[2:5] == ["graph", "1", "(3"]


def test_graphs_that_were_recorded_whole_are_told_apart(tmp_path):
    whole = "# llama-server\nG 1000 6000 7 1 0\nG 9000 1000 8 2 0\nC 8000 500 0 2 1\nG 21000 6000 7 3 0\n"
    lines = show(tmp_path, "--least", "1", "--idle", recorded=whole).splitlines()
    # from 1 to 21 us: a graph to 7, a copy from 8 to 8.5, another graph from 9 to 10
    assert lines[1] == "20 us from launch to launch of graph 1, of which idle 12.5 us (quarters 12.5, 12.5)"
    assert [line.split()[:2] for line in lines[2:5]] == [["11.0", "us"], ["1.0", "us"], ["0.5", "us"]]
    assert [line.split() for line in lines if " x " in line] == [
        ["6.0", "us", "1", "x", "all", "of", "graph", "7"],
        ["1.0", "us", "1", "x", "all", "of", "graph", "8"],
    ]
