"""The tiny trained pairs of the checkout, as GGUF files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dflash_tools.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[2]
MODELS = CHECKOUT / "models" / "tiny"


@dataclass(frozen=True)
class TinyPair:
    """A target and a drafter under `models/tiny/`, and the switch of the fork that serves them."""

    family: str
    engine: str

    @property
    def name(self) -> str:
        return f"{self.family} + {self.engine}"

    @property
    def target(self) -> Path:
        return MODELS / self.family / "target"

    @property
    def drafter(self) -> Path:
        return MODELS / self.family / self.engine

    @property
    def switch(self) -> tuple[str, ...]:
        return (f"--{self.engine}",)


ATTENTION = TinyPair("qwen3", "dflash")
EAGLE3 = TinyPair("qwen3", "eagle3")
HYBRID = TinyPair("qwen35", "dflash")
TINY_PAIRS = (ATTENTION, EAGLE3, HYBRID)


def held_out_prompts() -> list[dict[str, Any]]:
    """Prompts the pairs were not trained on: `kind`, and `messages` (a chat) or `prompt` (plain text)."""
    path = MODELS / "prompts.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as cause:
        raise UserError(f"{path}: {cause.strerror}; the tiny pairs are part of the checkout") from cause


def convert_tiny_target(pair: TinyPair, outfile: Path, outtype: str) -> Path:
    """Write the pair's target as GGUF, with llama.cpp's own converter (needs torch)."""
    from dflash_convert.upstream import convert_target

    _need(pair.target)
    return convert_target(pair.target, outfile, outtype)


def convert_tiny_drafter(pair: TinyPair, outfile: Path, outtype: str) -> Path:
    """Write the pair's drafter as GGUF, with convert-dflash's own work."""
    from dflash_convert.cli import convert

    _need(pair.drafter)
    convert(pair.drafter, pair.target, outfile, outtype)
    return outfile


def cached_gguf(source: Sequence[Path], folder: Path, name: str, make: Any) -> Path:
    """`folder/<hash>/name`, made by `make(path)` unless it is there.

    The hash is over all files in `source` (folders), so a changed checkpoint or converter gives another path.
    """
    digest = hashlib.sha256()
    for root in source:
        for path in sorted(p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    outfile = folder / digest.hexdigest()[:12] / name
    if not outfile.exists():
        outfile.parent.mkdir(parents=True, exist_ok=True)
        part = outfile.with_name(f"part-{os.getpid()}-{name}")  # two test processes may make it at once
        make(part)
        part.replace(outfile)
    return outfile


def _need(folder: Path) -> None:
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder}: no model.safetensors here; the tiny pairs are part of the checkout")
