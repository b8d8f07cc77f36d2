"""What `bench-dflash run` is to do, from a `bench.toml` and from options; a whole study is one command.

    target = "qwen3-8b-q4_k_m.gguf"
    options = ["-c", "16384", "-fa", "on"]        # of every server that is started here
    suites = ["code", "maths", "chat"]            # default: all; also names of .json files of prompts
    temperatures = [0, 0.7]

    [[drafter]]
    path = "qwen3-8b-dflash-q8_0.gguf"

    [[server]]                                    # an engine that runs already
    name = "vllm"
    url = "http://127.0.0.1:8000/v1"

Paths are relative to the file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dflash_tools.bench.arms import CHAT, RAW, THINKING, Setting
from dflash_tools.bench.prompts import SUITES
from dflash_tools.errors import UserError

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

INTERLEAVES = ("prompt", "server")
# Options of every server that is started here, unless the study names them. With --fit on (llama-server's default) a
# server that finds less free memory than another would quietly run with a smaller context or fewer layers on the card.
_DEFAULT_OPTIONS = (
    (("-c", "--ctx-size"), "16384"),
    (("-np", "--parallel"), "1"),
    (("-fit", "--fit"), "off"),
)
_NAME = re.compile(r"[\w.+-]{1,40}")


@dataclass(frozen=True)
class DrafterSpec:
    """A drafter, and the options that switch it on in the build that runs it (the first one unless named)."""

    path: Path
    name: str = ""
    switch: tuple[str, ...] = ("--dflash",)
    options: tuple[str, ...] = ()
    build: str = ""


@dataclass(frozen=True)
class ServerSpec:
    """Another engine. `key_env` names the environment variable with its key, `baseline` the side it is compared to."""

    name: str
    url: str
    model: str = ""
    key_env: str = ""
    baseline: str = ""


@dataclass(frozen=True)
class BuildSpec:
    """A folder with a llama-server; "" is the last build of build-fork."""

    name: str
    bin: Path | None = None


@dataclass(frozen=True)
class Study:
    """Everything that is asked, of whom, and how often.

    `interleave` is "prompt" (all servers loaded, each prompt on each in turn) or "server" (one loaded at a time, in
    turn for each pass, for cards that cannot hold them all).
    """

    target: Path | None = None
    options: tuple[str, ...] = ()
    drafter: tuple[DrafterSpec, ...] = ()
    server: tuple[ServerSpec, ...] = ()
    build: tuple[BuildSpec, ...] = (BuildSpec("fork"),)
    suites: tuple[str, ...] = tuple(SUITES)
    prompts: int = 10
    long_tokens: int = 8000
    max_tokens: int = 256
    repeats: int = 3
    warmup: int = 1
    temperatures: tuple[float, ...] = (0.0,)
    thinking: tuple[str, ...] = ("default",)
    templates: tuple[str, ...] = (CHAT,)
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"top_k": 20, "top_p": 0.95, "min_p": 0.0})
    seed: int = 1
    ignore_eos: bool = False
    interleave: str = "prompt"
    work: Path = Path(".bench")

    def settings(self) -> list[Setting]:
        """All combinations; without chat template there is no thinking to switch."""
        found = [
            Setting(temperature, "default" if template == RAW else thinking, template)
            for template in self.templates
            for thinking in self.thinking
            for temperature in self.temperatures
        ]
        return list(dict.fromkeys(found))

    def plain_name(self, build: str) -> str:
        """The side of that build without drafter."""
        return f"{build} plain" if len(self.build) > 1 else "plain"

    def drafted_name(self, drafter: DrafterSpec) -> str:
        """The side with that drafter."""
        return f"{drafter.build} {drafter.name}" if len(self.build) > 1 else drafter.name

    def side_names(self) -> list[str]:
        """Every side, in the order in which they are shown."""
        own = [
            name
            for build in (self.build if self.target is not None else ())
            for name in (self.plain_name(build.name), *map(self.drafted_name, self.drafters_of(build.name)))
        ]
        return [*own, *(spec.name for spec in self.server)]

    def drafters_of(self, build: str) -> list[DrafterSpec]:
        """The drafters that this build runs."""
        return [drafter for drafter in self.drafter if drafter.build == build]


def read_study(path: Path) -> Study:
    """Read `bench.toml`. Raises UserError naming the key that is unknown or of another type."""
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except OSError as cause:
        raise UserError(f"{path}: cannot be read ({cause.strerror})") from cause
    except (ValueError, RecursionError) as cause:
        raise UserError(f"{path}: is no TOML: {cause}") from cause
    study = _table(Study, found, str(path), path.parent)
    # A suite is a name, or a file, which is meant relative to the study like every other.
    return replace(study, suites=tuple(str(path.parent / s) if s.endswith(".json") else s for s in study.suites))


def checked(study: Study) -> Study:
    """Names filled in, values and references checked. Raises UserError for what cannot be run."""
    if study.target is None and not study.server:
        raise UserError("nothing to measure: name a target (and drafters), or a server that runs")
    if study.drafter and study.target is None:
        raise UserError("a drafter needs its target: give target")
    for key in ("prompts", "long_tokens", "max_tokens", "repeats"):
        if getattr(study, key) < 1:
            raise UserError(f"{key} is {getattr(study, key)}, expected at least 1")
    _each_of("thinking", study.thinking, THINKING)
    _each_of("templates", study.templates, (CHAT, RAW))
    _each_of("interleave", (study.interleave,), INTERLEAVES)
    for temperature in study.temperatures:
        if not 0 <= temperature <= 10:
            raise UserError(f"temperatures: {temperature} is not between 0 and 10")
    for key in ("suites", "temperatures", "thinking", "templates", "build"):
        if not getattr(study, key):
            raise UserError(f"{key} is empty")
    names = [build.name for build in study.build]
    drafters = []
    for spec in study.drafter:
        build = spec.build or names[0]
        _each_of(f"drafter {spec.path.name}: build", (build,), names)
        drafters.append(replace(spec, name=spec.name or re.sub(r"[^\w.+-]", "-", spec.path.stem)[:40], build=build))
    everyone = [*(s.name for s in study.server), *names, *(d.name for d in drafters)]
    for name in everyone:
        if not _NAME.fullmatch(name) or everyone.count(name) > 1:
            raise UserError(
                f"name {name!r}: names of drafters, servers and builds are unique, and 1 to 40 of A-Za-z0-9_.+-"
            )
    named = replace(study, drafter=tuple(drafters))
    sides = named.side_names()
    if twice := next((name for name in sides if sides.count(name) > 1), None):
        raise UserError(f"name {twice!r}: another side has that name")
    for spec in study.server:
        if spec.baseline:
            _each_of(f"server {spec.name}: baseline", (spec.baseline,), sides)
    missing = [(names[0], value) for names, value in _DEFAULT_OPTIONS if not set(names) & set(study.options)]
    options = (*study.options, *(word for pair in missing for word in pair))
    return replace(named, options=options)


def _each_of(key: str, values: Sequence[str], known: Sequence[str] | Mapping[str, Any]) -> None:
    for value in values:
        if value not in known:
            raise UserError(f"{key}: {value!r} is unknown, expected one of {', '.join(known)}")


def _table(kind: type, found: Mapping[str, Any], where: str, base: Path) -> Any:
    """A data class from a TOML table; the annotations say what each key holds."""
    known = {f.name: str(f.type) for f in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in found.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            raise UserError(f"{where}: key {key!r} is unknown{hint}")
        values[key] = _value(known[key], value, f"{where}: {key}", base)
    for field_ in fields(kind):
        if field_.default is MISSING and field_.default_factory is MISSING and field_.name not in values:
            raise UserError(f"{where}: {field_.name} is missing")
    return kind(**values)


def _value(wanted: str, value: Any, where: str, base: Path) -> Any:
    specs = {"DrafterSpec": DrafterSpec, "ServerSpec": ServerSpec, "BuildSpec": BuildSpec}
    if wanted.startswith("tuple["):
        inner = wanted[len("tuple[") : -len(", ...]")]
        if not isinstance(value, list):
            raise UserError(f"{where} is {value!r}, expected a list")
        return tuple(_value(inner, item, f"{where}[{i}]", base) for i, item in enumerate(value))
    if wanted in specs:
        if not isinstance(value, dict):
            raise UserError(f"{where} is {value!r}, expected a table")
        return _table(specs[wanted], value, where, base)
    if wanted.startswith("Path"):
        return base / _plain(value, str, where)
    if wanted.startswith("Mapping"):
        return _plain(value, dict, where)
    if wanted == "float":
        return float(_plain(value, (int, float), where))
    return _plain(value, {"int": int, "str": str, "bool": bool}[wanted], where)


def _plain(value: Any, kind: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise UserError(f"{where} is {value!r}, expected {names}")
    return value
