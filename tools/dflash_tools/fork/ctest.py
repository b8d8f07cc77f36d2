"""Upstream's own tests of the code that the patches touch, and the tests that the patches add."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from dflash_tools.errors import UserError, join_words
from dflash_tools.fork.series import read_series
from dflash_tools.fork.workspace import Say, Workspace, quiet

UPSTREAM = (
    "test-arg-parser",
    "test-sampling",
    "test-batch-alloc",
    "test-llama-archs",
    "test-recurrent-state-rollback",
    "test-save-load-state",
    "test-model-resolution",
)
# Tests whose last part asks a server on the internet, with the line that it begins with: without a network they have
# done all that concerns us when they get there.
ASKS_THE_INTERNET = {"test-arg-parser": "test-arg-parser: test good URL"}


def ctest_programs(ws: Workspace) -> tuple[str, ...]:
    """Names of the test programs to build and run."""
    series = read_series(ws.patches)
    touched: list[str] = []
    for name in series.names:
        path = series.folder / name
        text = path.read_text("utf-8", "replace") if path.is_file() else ""  # a missing one is reported when applied
        touched += re.findall(r"^\+\+\+ b/tests/(test-[a-z0-9-]+)\.cpp$", text, re.MULTILINE)
    return tuple(dict.fromkeys([*UPSTREAM, *(name for name in touched if name != "test-backend-ops")]))


def run_tests(ctest: str, build_folder: Path, names: tuple[str, ...], jobs: int, say: Say = quiet) -> None:
    """Run the tests of these programs, with what they depend on, and show the output of those that fail.

    Raises UserError naming them.
    """
    words = [ctest, "--test-dir", str(build_folder), "--no-tests=error", "--output-on-failure", "-j", str(jobs)]
    offline = [name for name in names if name in ASKS_THE_INTERNET]
    failed = []
    others = "|".join(map(re.escape, [name for name in names if name not in offline]))
    # two programs of several threads share the cores: threads that spin while they wait take twice the time
    calm = {**os.environ, "GOMP_SPINCOUNT": "0"}
    if subprocess.run([*words, "-R", f"^({others})$"], check=False, env=calm).returncode:
        failed.append("ctest")
    for name in offline:
        done = subprocess.run(
            [*words, "-V", "-R", f"^{name}$"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode and ASKS_THE_INTERNET[name] not in done.stdout:
            print(done.stdout)
            failed.append(name)
        elif done.returncode:
            say(f"{name}: passed up to its last part, which failed because it asks the internet")
        else:
            say(f"{name}: passed")
    if failed:
        raise UserError(f"{join_words(failed)} failed; the output is above")
