"""Load a finished pair, run the held-out prompts through it and print what its drafters are worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from . import checkpoint, dflash, eagle3, prompts
from .acceptance import Acceptance, Draft, dflash_draft, eagle3_draft, greedy, speculate
from .corpus import render_chat
from .targets import Family

TOKENS = 64
EAGLE3_DEPTH = 5


class TextsDifferError(Exception):
    """Speculation gave another text than the target alone."""


def prompt_ids(tokenizer: Tokenizer, entry: dict[str, object]) -> list[int]:
    """Token ids of one entry of prompts.json, chats with the opening of the answer."""
    if "messages" in entry:
        turns = tuple((message["role"], message["content"]) for message in entry["messages"])  # type: ignore[union-attr]
        return tokenizer.encode(render_chat(turns, generation_prompt=True)).ids
    return tokenizer.encode(str(entry["prompt"])).ids


def load_drafts(target: PreTrainedModel, directory: Path) -> dict[str, Draft]:
    """The drafters that lie beside a target."""
    tensors, config = checkpoint.load_drafter(directory / "dflash")
    block = dflash.DFlash(dflash.shape_from_config(config)).eval()
    block.load_state_dict(tensors)
    drafts = {"dflash": dflash_draft(target, block)}
    if (directory / "eagle3").exists():
        tensors, config = checkpoint.load_drafter(directory / "eagle3")
        chain = eagle3.Eagle3(eagle3.shape_from_config(config)).eval()
        offsets = tensors.pop("d2t")
        del tensors["t2d"]
        chain.load_state_dict(tensors)
        drafts["eagle3"] = eagle3_draft(target, chain, offsets + torch.arange(len(offsets)), EAGLE3_DEPTH)
    return drafts


def measure(
    target: PreTrainedModel, tokenizer: Tokenizer, drafts: dict[str, Draft], entries: Sequence[dict[str, object]]
) -> tuple[dict[str, Acceptance], list[str]]:
    """Acceptance of each drafter over the prompts, and the greedy texts.

    Raises TextsDifferError if a text with a drafter is not the text without.
    """
    ends = target.generation_config.eos_token_id
    tallies = {name: Acceptance() for name in drafts}
    texts = []
    for entry in entries:
        ids = prompt_ids(tokenizer, entry)
        alone = greedy(target, ids, TOKENS, ends)
        texts.append(tokenizer.decode(alone, skip_special_tokens=False))
        for name, draft in drafts.items():
            if speculate(target, draft, ids, TOKENS, ends, tallies[name]) != alone:
                raise TextsDifferError(f"{name} changes the text of {entry}")
    return tallies, texts


def measure_pair(family: Family, out: Path) -> None:
    """Print texts, mean acceptance length, its histogram and how often places of a draft differ."""
    target, tokenizer = checkpoint.load_target(out / family.name / "target")
    entries = prompts.load_prompts(out / "prompts.json")
    tallies, texts = measure(target, tokenizer, load_drafts(target, out / family.name), entries)
    for entry, text in zip(entries, texts, strict=True):
        print(f"{prompts.prompt_text(entry)!r} -> {text!r}")
    for name, tally in tallies.items():
        histogram = " ".join(f"{length}:{tally.lengths[length]}" for length in sorted(tally.lengths))
        print(
            f"{family.name} {name}: {tally.mean_length:.2f} tokens per verify step, {tally.rounds} steps, "
            f"lengths {histogram}"
        )
        differ = tally.slots_that_differ()
        print("places differ in % of drafts:")
        for row in differ:
            print("   " + " ".join(f"{100 * value:3.0f}" for value in row.tolist()), flush=True)
