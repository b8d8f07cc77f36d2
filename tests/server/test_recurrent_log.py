"""States of a trained hybrid target on a row log are those of plain decoding, whatever happens to its sequences."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from serving import EXACT

PROGRAM = "test-recurrent-log"


def run(bin_dir: Path, model: Path, arguments: Sequence[str]) -> list[str]:
    """Lines of results of the program, which has to succeed."""
    program = bin_dir / PROGRAM
    if not program.is_file():
        pytest.fail(f"{program} is not there: run 'build-fork test' first", pytrace=False)
    done = subprocess.run([program, "-m", model, *arguments], capture_output=True, text=True, timeout=300, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-2000:]
    return re.findall(r"^test_\w+: .*$", output, re.MULTILINE)


def test_drafts_copies_saves_and_removals_leave_the_states_of_plain_decoding(
    bin_dir: Path, tiny_gguf: Callable[[str, str], Path]
) -> None:
    lines = run(bin_dir, tiny_gguf("qwen35", "target"), ["--rounds", "30"])
    assert len(lines) == 4, lines
    assert all(line.endswith(": OK") for line in lines), lines


def test_a_long_run_of_drafts_does_not_drift(bin_dir: Path, tiny_gguf: Callable[[str, str], Path]) -> None:
    # a GPU attends to caches in f16 otherwise, and differs by that between one row and several
    lines = run(bin_dir, tiny_gguf("qwen35", "target"), ["--long", "600", *EXACT])
    assert len(lines) == 1, lines
    assert lines[0].endswith(": OK"), lines
