"""Shared by the converter's tests: the llama.cpp tree, and tokenizer exports made once per target."""

from __future__ import annotations

import os
from pathlib import Path

import dflash_convert.tokenizer
import pytest
from dflash_convert import upstream


@pytest.fixture(scope="session")
def llama_cpp() -> Path:
    """The llama.cpp tree whose converter is the oracle: the pinned one, or the one the environment names."""
    named = os.environ.get("LLAMA_DFLASH_TEST_TREE")
    return Path(named) if named else upstream.pinned_tree()


@pytest.fixture(autouse=True)
def tokenizers_exported_once(monkeypatch: pytest.MonkeyPatch, llama_cpp: Path, exports: dict) -> None:
    """A tokenizer export takes seconds; conversions of the same target share one. Errors are not remembered."""

    def export(target: Path, *, llama_rules: bool = False, llama_cpp: Path | None = llama_cpp) -> bytes:
        files = sorted((p.name, p.read_bytes()) for p in target.iterdir() if p.suffix == ".json")
        key = (llama_rules, str(files))
        if key not in exports:
            exports[key] = upstream.export_tokenizer(target, llama_rules=llama_rules, llama_cpp=llama_cpp)
        return exports[key]

    monkeypatch.setattr(dflash_convert.tokenizer, "export_tokenizer", export)


@pytest.fixture(scope="session")
def exports() -> dict:
    return {}
