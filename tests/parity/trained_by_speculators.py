"""speculators' own model classes, without the packages that only its training and data generation need."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest

# Imported at its top level, never called by a model's forward.
_ONLY_FOR_TRAINING = ("openai", "openai.types", "openai.types.chat", "openai.types.completion", "datasets",
                      "hs_connectors")  # fmt: skip


class _Unused(ModuleType):
    """A module in whose place nothing is installed: it can be imported from, and that is all."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def models(family: str) -> ModuleType:
    """`speculators.models.<family>`; skips the test if speculators is not installed."""
    if importlib.util.find_spec("speculators") is None:
        pytest.skip("speculators is not installed: pip install --no-deps speculators==0.9.0")
    packages = {n.split(".")[0] for n in _ONLY_FOR_TRAINING}
    absent = {n for n in packages if n not in sys.modules and importlib.util.find_spec(n) is None}
    for name in _ONLY_FOR_TRAINING:
        if name.split(".")[0] in absent:
            sys.modules[name] = module = _Unused(name)
            module.__path__ = []  # type: ignore[attr-defined]
    return importlib.import_module(f"speculators.models.{family}")
