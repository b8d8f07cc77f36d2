"""Rollback of sequences that were verified in one batch, wherever their states lie, on a trained hybrid target."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


def test_rolled_back_states_are_those_of_a_context_that_never_drafted(
    bin_dir: Path, tiny_gguf: Callable[[str, str], Path]
) -> None:
    program = bin_dir / "test-recurrent-slots"
    if not program.is_file():
        pytest.fail(f"{program} is not there: run 'build-fork test' first", pytrace=False)
    command = [program, "-m", tiny_gguf("qwen35", "target"), "-ctk", "f32", "-ctv", "f32", "-fa", "off", "-t", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    output = done.stdout + done.stderr
    assert output.count("worst error") == 2, output[-2000:]
    assert done.returncode == 0, output[-2000:]
