"""The recipe of the tiny models is not an installed package; its tests import it from models/."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "models"
sys.path.insert(0, str(MODELS))


@pytest.fixture(scope="session")
def tiny() -> Path:
    return MODELS / "tiny"
