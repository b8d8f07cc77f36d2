"""Typed values out of the metadata of a GGUF file that somebody else wrote, with errors a user can act on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dflash_tools.errors import UserError

from dflash_convert.gguf_file import Metadata

MAX_INT = 2**31 - 1


@dataclass(frozen=True)
class Keys:
    """Keys of `path` without `prefix`, by which they are named in messages."""

    path: Path
    prefix: str
    values: Metadata

    def where(self, key: str) -> str:
        return f"{self.path}: {self.prefix}{key}"

    def has(self, key: str) -> bool:
        return key in self.values

    def integer(self, key: str, *, least: int = 0, most: int = MAX_INT) -> int:
        value = self._required(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{self.where(key)} is {_shown(value)}; a whole number is expected")
        if not least <= value <= most:
            raise UserError(f"{self.where(key)} is {value}; expected {least} to {most}")
        return value

    def optional_integer(self, key: str, *, least: int = 0, most: int = MAX_INT) -> int | None:
        return self.integer(key, least=least, most=most) if self.has(key) else None

    def number(self, key: str) -> float:
        """A finite number above 0."""
        value = self._required(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{self.where(key)} is {_shown(value)}; a number is expected")
        if not math.isfinite(value) or value <= 0:
            raise UserError(f"{self.where(key)} is {value}; a finite positive number is expected")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """A truth value; old files also write them as 0 and 1."""
        value = self.values[key].value if self.has(key) else default
        if value not in (0, 1):
            raise UserError(f"{self.where(key)} is {_shown(value)}; true or false is expected")
        return bool(value)

    def integers(self, key: str, *, least: int = 0, most: int = MAX_INT) -> tuple[int, ...]:
        """A list of whole numbers; empty if absent."""
        value = self.values[key].value if self.has(key) else []
        if not isinstance(value, list) or not all(type(v) is int and least <= v <= most for v in value):
            raise UserError(f"{self.where(key)} is {_shown(value)}; whole numbers from {least} to {most} are expected")
        return tuple(value)

    def flags(self, key: str, n: int) -> tuple[bool, ...]:
        """One flag for each of `n` layers."""
        value = self._required(key)
        if not isinstance(value, list) or len(value) != n or not all(v in (0, 1) for v in value):
            raise UserError(f"{self.where(key)} is {_shown(value)}; a flag for each of {n} layers is expected")
        return tuple(bool(v) for v in value)

    def _required(self, key: str) -> Any:
        if not self.has(key):
            raise UserError(f"{self.where(key)} is missing. Convert the drafter's original checkpoint instead.")
        return self.values[key].value


def _shown(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
