"""Make the tiny target and drafter pairs of models/tiny from nothing: text, tokenizers, targets, drafters, prompts.

    python models/train_tiny.py [--only qwen3|qwen35] [--parts target,dflash,eagle3] [--out DIR]

Everything is seeded. One thread is used: on two, tiny matrices wait for each other longer than they compute.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from tiny_recipe import checkpoint, dflash, eagle3, prompts
from tiny_recipe.answers import greedy_answers
from tiny_recipe.batches import document_ids, pack
from tiny_recipe.corpus import END_OF_TEXT, IM_END, MASK, training_documents
from tiny_recipe.measure import measure_pair
from tiny_recipe.targets import FAMILIES, VOCABULARY, Family, train_target
from tiny_recipe.tokenizer import train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor

SEEDS = {"tokenizer": 7, "target": 1, "dflash": 2, "eagle3": 3, "prompts": 4, "answers": 5}
TOKENIZER_DOCUMENTS = 6000
DFLASH_STEPS, DFLASH_ANCHORS = 400, 32
EAGLE3_STEPS, EAGLE3_VOCABULARY = 180, 512
ANSWERS = 1280  # training prompts that a target answers for its drafters
PARTS = ("target", "dflash", "eagle3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(FAMILIES), help="make one pair")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to train; drafters alone need the target in OUT")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "tiny", help="where to (default: models/tiny)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    save_prompts(arguments.out)
    for family in [FAMILIES[arguments.only]] if arguments.only else FAMILIES.values():
        started = time.process_time()
        make_pair(family, arguments.out, set(arguments.parts.split(",")))
        print(f"{family.name}: {time.process_time() - started:.0f} s of processor time", flush=True)
        if (arguments.out / family.name / "dflash").exists():
            measure_pair(family, arguments.out)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: fresh pages for every large tensor cost a tenth of the time."""
    mmap_threshold, trim_threshold = -3, -1  # numbers of malloc.h
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for option in (mmap_threshold, trim_threshold):
            mallopt(option, 2**31 - 1)


def save_prompts(out: Path) -> None:
    """Choose prompts that no training text holds."""
    out.mkdir(parents=True, exist_ok=True)
    text = "\n".join("".join(prompts.training_text(seed, prompts.DOCUMENTS)) for seed in SEEDS.values())
    prompts.save_prompts(prompts.choose_prompts(SEEDS["prompts"], text), out / "prompts.json")


def make_pair(family: Family, out: Path, parts: set[str]) -> None:
    directory = out / family.name
    if "target" in parts:
        texts = (document.render() for document in islice(training_documents(SEEDS["tokenizer"]), TOKENIZER_DOCUMENTS))
        tokenizer = train_tokenizer(texts, family.pre_tokenizer, family.tokens)
        checkpoint.save_target(train_target(family, tokenizer, SEEDS["target"]), tokenizer, directory / "target")
    if parts <= {"target"}:
        return
    target, tokenizer = checkpoint.load_target(directory / "target")
    held_out = prompts.load_prompts(out / "prompts.json")
    answers = [
        ids
        for ids in greedy_answers(target, tokenizer, SEEDS["answers"], ANSWERS)
        if not prompts.leaked(held_out, tokenizer.decode(ids, skip_special_tokens=False))  # a target may invent one
    ]
    print(f"{family.name}: {len(answers)} answers, {sum(map(len, answers))} tokens", flush=True)

    if "dflash" in parts:
        shape = dflash.Shape.of_target(target, family.dflash_layers, family.dflash_taps, tokenizer.token_to_id(MASK))
        batches = drafter_batches(tokenizer, answers, SEEDS["dflash"], DFLASH_STEPS, tokens=2048)
        drafter = dflash.train_dflash(target, batches, shape, DFLASH_STEPS, DFLASH_ANCHORS, SEEDS["dflash"])
        checkpoint.save_drafter(drafter.state_dict(), dflash.dflash_config(target, shape), directory / "dflash")

    if "eagle3" in parts and family.eagle3_taps:
        shape = eagle3.Shape.of_target(target, family.eagle3_taps, EAGLE3_VOCABULARY)
        ends = [tokenizer.token_to_id(token) for token in (IM_END, END_OF_TEXT)]
        counted = drafter_batches(tokenizer, answers, SEEDS["tokenizer"], 100, tokens=2048)
        kept = eagle3.draft_vocabulary(counted, EAGLE3_VOCABULARY, ends, VOCABULARY)
        batches = drafter_batches(tokenizer, answers, SEEDS["eagle3"], EAGLE3_STEPS, tokens=1024)
        drafter = eagle3.train_eagle3(target, batches, shape, kept, EAGLE3_STEPS, SEEDS["eagle3"])
        tensors = eagle3.eagle3_tensors(drafter, kept, VOCABULARY)
        checkpoint.save_drafter(tensors, eagle3.eagle3_config(target, shape), directory / "eagle3")


def drafter_batches(
    tokenizer: Tokenizer, answers: Sequence[list[int]], seed: int, steps: int, tokens: int
) -> Iterator[Tensor]:
    """Every other document is one of the target's own answers; the rest is training text, which visits more states.

    Rows have 256 tokens; in the last fifth of the steps 1024, as drafters meet longer texts too.
    """
    documents = _alternate(document_ids(tokenizer, seed), answers, random.Random(seed))
    for step in range(steps):
        length = 1024 if step > 0.8 * steps else 256
        yield pack(documents, tokens // length, length)


def _alternate(texts: Iterator[list[int]], answers: Sequence[list[int]], rng: random.Random) -> Iterator[list[int]]:
    for text in texts:
        yield text
        yield rng.choice(answers)


if __name__ == "__main__":
    main()
