"""What is compared: the tiny pairs, the lengths of text, and the options that make llama.cpp comparable."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

TINY = Path(__file__).parents[2] / "models" / "tiny"
N_PREDICT = 64
# by random drafters, of which hardly a draft is accepted: about as many blocks
DRAFTED_TOKENS = 24

# The CPU, also in a build for a GPU, whose float32 products are rounded to TF32. One thread: the tests compare numbers,
# and the order of sums must not depend on the machine.
# float32 everywhere: weights (the GGUFs), both caches, and no flash attention, which works in float16 on some backends.
# 512 > 128: a prompt of more than 512 tokens crosses micro-batches of 128 and a batch of 512.
EXACT = (
    *("--ctx-size", "2048", "--batch-size", "512", "--ubatch-size", "128"),
    *("--device", "none", "--spec-draft-device", "none", "--threads", "1", "--spec-draft-threads", "1"),
    *("--cache-type-k", "f32", "--cache-type-v", "f32", "--spec-draft-type-k", "f32", "--spec-draft-type-v", "f32"),
    *("--flash-attn", "off", "--temp", "0"),
)
LENGTHS = {"short": None, "hundred": 100, "beyond-a-batch": 600}


class Case(NamedTuple):
    pair: str
    engine: str

    def __str__(self) -> str:
        return f"{self.pair}-{self.engine}"


CASES = (Case("qwen3", "dflash"), Case("qwen35", "dflash"), Case("qwen3", "eagle3"))
