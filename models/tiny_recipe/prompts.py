"""The held-out prompts of models/tiny/prompts.json: how they are chosen and how they are checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from .corpus import held_out_documents, training_documents

PROMPTS = 32
DOCUMENTS = 20_000  # more than any training run reads of its stream
CANDIDATES = 20_000
LONG_ANSWER = 60  # characters; shorter answers end before a drafter can show anything


def choose_prompts(seed: int, training_text: str) -> list[dict[str, object]]:
    """`PROMPTS` held-out prompts, half chats, half plain texts; of a chat kind at most two, of a plain kind four.

    Each is {"kind": ..., "messages": [...]} for a chat or {"kind": ..., "prompt": ...} for a completion. None is a
    substring of the training text.
    """
    chosen: list[dict[str, object]] = []
    of_kind: dict[str, int] = {}
    texts: set[str] = set()
    for document in islice(held_out_documents(seed), CANDIDATES):
        prompt = document.prompts[0]
        answer = document.turns[1][1] if document.turns else document.body
        most = 2 if document.turns else 4
        if (
            len(answer) < LONG_ANSWER
            or of_kind.get(document.kind, 0) >= most
            or prompt in texts
            or prompt in training_text
        ):
            continue
        if sum(("messages" in entry) == bool(document.turns) for entry in chosen) >= PROMPTS // 2:
            continue
        of_kind[document.kind] = of_kind.get(document.kind, 0) + 1
        texts.add(prompt)
        entry: dict[str, object] = {"kind": document.kind}
        if document.turns:
            entry["messages"] = [{"role": "user", "content": prompt}]
        else:
            entry["prompt"] = prompt
        chosen.append(entry)
        if len(chosen) == PROMPTS:
            return chosen
    raise ValueError(f"only {len(chosen)} of {PROMPTS} prompts among {CANDIDATES} candidates: {of_kind}")


def save_prompts(prompts: list[dict[str, object]], path: Path) -> None:
    path.write_text(json.dumps(prompts, indent=1) + "\n")


def load_prompts(path: Path) -> list[dict[str, object]]:
    return json.loads(path.read_text())


def training_text(seed: int, documents: int) -> Iterator[str]:
    """The text of the first documents of a training stream."""
    return (document.render() for document in islice(training_documents(seed), documents))


def leaked(prompts: Iterable[dict[str, object]], text: str) -> list[str]:
    """Prompts that occur in a text."""
    return [prompt for prompt in map(prompt_text, prompts) if prompt in text]


def prompt_text(entry: dict[str, object]) -> str:
    """What the user typed."""
    return entry["messages"][-1]["content"] if "messages" in entry else entry["prompt"]  # type: ignore[index,return-value]
