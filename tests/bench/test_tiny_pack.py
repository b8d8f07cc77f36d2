"""GGUF files of the tiny pairs travel without what the checkout has already."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TINY = Path(__file__).resolve().parents[2] / "ci" / "gpu" / "tiny.py"


def tiny(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TINY), *map(str, words)], capture_output=True, text=True)


@pytest.fixture
def packed(tiny_gguf, tmp_path) -> tuple[Path, Path]:
    """A drafter's GGUF file, and the folder that it was packed into."""
    (tmp_path / "made").mkdir()
    made = tmp_path / "made" / "drafter.gguf"
    made.write_bytes(tiny_gguf("qwen35", "dflash").read_bytes())
    assert tiny("shrink", made.parent, tmp_path / "packed").returncode == 0
    return made, tmp_path / "packed"


def test_a_packed_file_comes_back_byte_for_byte_and_holds_almost_nothing(packed, tmp_path):
    made, folder = packed
    left = (folder / "drafter.gguf").read_bytes()
    assert len(left) - left.count(0) < made.stat().st_size / 10
    assert tiny("restore", folder, tmp_path / "back").returncode == 0
    assert (tmp_path / "back" / "drafter.gguf").read_bytes() == made.read_bytes()


def test_a_file_that_is_not_what_was_packed_is_refused(packed, tmp_path):
    _, folder = packed
    spoilt = bytearray((folder / "drafter.gguf").read_bytes())
    spoilt[100] ^= 1
    (folder / "drafter.gguf").write_bytes(spoilt)
    done = tiny("restore", folder, tmp_path / "back")
    assert done.returncode == 1 and "drafter.gguf: is not the file that was packed" in done.stderr
