"""Read JSON files that somebody else wrote, and take typed values out of them with errors a user can act on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dflash_tools.errors import UserError

MAX_JSON_BYTES = 64 << 20
MAX_INT = 2**31 - 1
MAX_FLOAT = 3e38


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that the JSON file `path` holds. Raises UserError if there is none."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise UserError(f"{path}: {size} bytes is too large for a JSON file of a model (limit {MAX_JSON_BYTES})")
        return parse_json_object(path.read_bytes(), path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from e


def parse_json_object(data: bytes, where: Path | str) -> dict[str, Any]:
    """As `read_json_object`, from bytes; `where` names them in errors. A key that stands twice is an error."""
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not valid JSON: {e}") from e
    if not isinstance(found, dict):
        raise UserError(f"{where}: holds a JSON {type(found).__name__}; an object is expected")
    return found


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return found


@dataclass(frozen=True)
class Config:
    """A JSON object and where it came from; `null` counts as absent everywhere.

    `prefix` is the path of this object inside its file, for messages ("dflash_config.").
    """

    path: Path
    values: Mapping[str, Any]
    prefix: str = ""

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def where(self, key: str) -> str:
        return f"{self.path}: {self.prefix}{key}"

    def section(self, key: str) -> Config:
        """The object under `key`; an empty one if it is absent."""
        value = self.values.get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise UserError(f"{self.where(key)} is {_shown(value)}; an object is expected")
        return Config(self.path, value, f"{self.prefix}{key}.")

    def with_defaults(self, defaults: Mapping[str, Any]) -> Config:
        """The same with `defaults` for the keys that are absent."""
        stated = {k: v for k, v in self.values.items() if v is not None}
        return Config(self.path, {**defaults, **stated}, self.prefix)

    def integer(self, key: str, *, least: int = 0, most: int = MAX_INT) -> int:
        """A whole number in [least, most]."""
        value = self._required(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{self.where(key)} is {_shown(value)}; a whole number is expected")
        if not least <= value <= most:
            raise UserError(f"{self.where(key)} is {_shown(value)}; expected {least} to {most}")
        return value

    def optional_integer(self, key: str, *, least: int = 0, most: int = MAX_INT) -> int | None:
        return self.integer(key, least=least, most=most) if self.has(key) else None

    def number(self, key: str, *, positive: bool = False) -> float:
        """A finite number that a 32-bit float can hold."""
        value = self._required(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{self.where(key)} is {_shown(value)}; a number is expected")
        if abs(value) > MAX_FLOAT or not math.isfinite(value) or (positive and value <= 0):
            kind = "positive number" if positive else "number"
            raise UserError(f"{self.where(key)} is {_shown(value)}; a finite {kind} is expected")
        return float(value)

    def optional_number(self, key: str, *, positive: bool = False) -> float | None:
        return self.number(key, positive=positive) if self.has(key) else None

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise UserError(f"{self.where(key)} is {_shown(value)}; true or false is expected")
        return value

    def string(self, key: str, default: str = "") -> str:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise UserError(f"{self.where(key)} is {_shown(value)}; a string is expected")
        return value

    def strings(self, key: str) -> list[str]:
        """A list of strings; empty if absent."""
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise UserError(f"{self.where(key)} is {_shown(value)}; a list of strings is expected")
        return value

    def integers(self, key: str, *, least: int = 0) -> list[int]:
        """A list of whole numbers; empty if absent."""
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(
            isinstance(v, int) and not isinstance(v, bool) and least <= v <= MAX_INT for v in value
        ):
            raise UserError(f"{self.where(key)} is {_shown(value)}; a list of whole numbers from {least} is expected")
        return value

    def _required(self, key: str) -> Any:
        value = self.values.get(key)
        if value is None:
            raise UserError(f"{self.where(key)} is missing")
        return value


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
