"""Prompts of the suites: from packages where they ship, written for this project otherwise.

A suite is a name of `SUITES` or a file: a JSON list of objects with `messages` (a chat) or `prompt` (plain text), and
if wanted `id`, `raw` (what is asked without chat template) and `tools`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dflash_tools.client import Message
from dflash_tools.errors import UserError
from dflash_tools.real.prompts import gsm8k_sample, human_eval, mt_bench, spread

OWN = Path(__file__).parent / "own_prompts"
# Characters of Python source per token, by the tokenizers of common models about.
_CHARS_PER_TOKEN = 3.2
_LARGEST = 64 << 20


@dataclass(frozen=True)
class Prompt:
    """One thing to ask: as a chat (`messages`), and as text to go on with (`raw`) where that makes sense.

    Suite and id name it; two prompts of the same name are the same.
    """

    suite: str
    id: str
    messages: tuple[Message, ...] = field(compare=False)
    raw: str | None = field(default=None, compare=False)
    tools: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)

    @property
    def key(self) -> str:
        return f"{self.suite}/{self.id}"


@dataclass(frozen=True)
class Sources:
    """Where suites come from: `folder` keeps downloaded packages, `long_tokens` is the length of long prompts."""

    folder: Path
    long_tokens: int = 8000


def suite(name: str, count: int, sources: Sources) -> list[Prompt]:
    """The first `count` prompts of a suite, or of a file. Raises UserError for an unknown name or a damaged file."""
    if name in SUITES:
        return SUITES[name](count, sources)
    path = Path(name)
    if path.suffix != ".json":
        raise UserError(f"suite {name!r} is unknown: expected one of {', '.join(SUITES)}, or a .json file of prompts")
    return prompt_file(path, path.stem)[:count]


def digest(prompts: Sequence[Prompt]) -> str:
    """Tells whether two measurements asked the same."""
    text = json.dumps([asdict(prompt) for prompt in prompts], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompt_file(path: Path, name: str) -> list[Prompt]:
    """All prompts of a file, under the suite's name."""
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{path}: {path.stat().st_size} bytes, too large for a file of prompts")
        found = json.loads(path.read_bytes())
    except OSError as cause:
        raise UserError(f"{path}: cannot be read ({cause.strerror})") from cause
    except (ValueError, RecursionError) as cause:
        raise UserError(f"{path}: is no JSON ({cause}); expected a list of prompts") from cause
    if not isinstance(found, list) or not found:
        raise UserError(f"{path}: expected a list of prompts, found {type(found).__name__}")
    prompts = [_prompt(entry, f"{path}, prompt {i}", name, str(i)) for i, entry in enumerate(found)]
    names = [prompt.id for prompt in prompts]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: id {next(n for n in names if names.count(n) > 1)!r} is there more than once")
    return prompts


def _prompt(entry: Any, where: str, name: str, number: str) -> Prompt:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: is {type(entry).__name__}, expected an object")
    text, messages, tools = entry.get("prompt"), entry.get("messages"), entry.get("tools", [])
    if isinstance(text, str) and messages is None:
        messages = [{"role": "user", "content": text}]
    good = isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages)
    if not good or not isinstance(tools, list) or not isinstance(entry.get("raw", ""), str):
        raise UserError(f"{where}: expected 'messages' (role and content each) or 'prompt' (text), and lists of tools")
    return Prompt(name, str(entry.get("id", number)), tuple(messages), entry.get("raw", text), tuple(tools))


def _chat(name: str, key: str, text: str, raw: str | None = None) -> Prompt:
    return Prompt(name, key, ({"role": "user", "content": text},), raw)


def _code(count: int, sources: Sources) -> list[Prompt]:
    """HumanEval, in the order that `datasets` shuffles it to with seed 42: the first ten are those of Luce's tables."""
    tasks = human_eval(sources.folder)
    order = np.random.default_rng(42).permutation(len(tasks))[:count]
    return [_chat("code", tasks[i]["task_id"], tasks[i]["prompt"], tasks[i]["prompt"]) for i in order]


def _maths(count: int, sources: Sources) -> list[Prompt]:
    """GSM8K problems; raw in the form of Luce's tables, though not the same ten (the package holds 100 of 1319)."""
    problems = spread(gsm8k_sample(sources.folder), count)
    return [_chat("maths", p["id"], p["prompt"], f"Question: {p['prompt']}\nAnswer: ") for p in problems]


def _talk(count: int, sources: Sources) -> list[Prompt]:
    questions = spread(mt_bench(sources.folder), count)
    return [_chat("chat", f"{q['category']}-{q['question_id']}", q["turns"][0]) for q in questions]


def _long(count: int, sources: Sources) -> list[Prompt]:
    """A module of HumanEval's solutions, and a request about one function in its middle."""
    tasks = human_eval(sources.folder)
    wanted = int(sources.long_tokens * _CHARS_PER_TOKEN)
    prompts = []
    for number in range(count):
        order = np.random.default_rng(number).permutation(len(tasks))
        parts: list[str] = []
        names: list[str] = []
        while sum(map(len, parts)) < wanted:
            task = tasks[order[len(parts) % len(order)]]
            parts.append(f"{task['prompt']}{task['canonical_solution']}\n\n")
            names.append(task["entry_point"])
        module, name = "".join(parts)[:wanted], names[len(names) // 2]
        ask = (
            f"Repeat the function `{name}` of this module word for word, then say in two sentences what it does.",
            f"Rewrite the function `{name}` of this module with type hints and a clearer docstring, and nothing else.",
            "Which functions of this module work on strings? Name each with one sentence about what it returns.",
            f"Write unit tests with pytest for the function `{name}` of this module.",
        )[number % 4]
        raw = f"{module}\n\n# Tests of {name}\n\n\ndef test_{name}():\n"
        prompts.append(_chat("long", f"{sources.long_tokens}-{number}", f"```python\n{module}\n```\n\n{ask}", raw))
    return prompts


def _own(name: str) -> Callable[[int, Sources], list[Prompt]]:
    def read(count: int, _sources: Sources) -> list[Prompt]:
        prompts = prompt_file(OWN / f"{name}.json", name)
        if name != "tools":
            return prompts[:count]
        tools = tuple(json.loads((OWN / "tool_definitions.json").read_text("utf-8")))
        return [replace(prompt, tools=tools, raw=None) for prompt in prompts[:count]]

    return read


SUITES: dict[str, Callable[[int, Sources], list[Prompt]]] = {
    "code": _code,
    "maths": _maths,
    "chat": _talk,
    "prose": _own("prose"),
    "json": _own("json"),
    "edit": _own("edit"),
    "tools": _own("tools"),
    "long": _long,
}
