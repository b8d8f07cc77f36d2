"""What a user gets: the greedy text of the fork's server, with and without drafter, is the reference target's.

The reference does not generate. A text is greedy exactly if each of its tokens is the best continuation of the tokens
before it, so one forward over the finished text decides, and shows by what margin.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import pytest
import torch
from dflash_tools.server import LlamaServer
from parity_cases import CASES, EXACT, N_PREDICT, TINY

# Tokens whose reference logits are closer than this may change places between two orders of float32 sums: hidden states
# differ by up to 9.4e-5 (test_tapped_features.py). On the tiny pairs no text needed it.
TIE = 5e-4
PROMPTS = 16


@pytest.fixture(scope="module")
def answers(bin_dir, tiny_gguf, held_out, tmp_path_factory) -> Callable[[str, str | None], list[list[int]]]:
    """Answers to PROMPTS held-out prompts, N_PREDICT tokens each, by a server with the given engine or none."""

    def run(pair: str, engine: str | None) -> list[list[int]]:
        drafter = {"drafter": tiny_gguf(pair, engine), "switch": (f"--{engine}",)} if engine else {}
        log = tmp_path_factory.mktemp("greedy") / f"{pair}-{engine}.log"
        options = (*EXACT, "--parallel", "1")
        with LlamaServer(bin_dir, tiny_gguf(pair, "target"), log=log, extra=options, **drafter) as server:
            found = [
                server.completion(prompt, n_predict=N_PREDICT, ignore_eos=True, cache_prompt=False, return_tokens=True)
                for prompt in held_out(pair)[:PROMPTS]
            ]
            accepted = sum(answer.timings.draft_n_accepted for answer in found)
        if engine:
            assert accepted > 0, f"{pair}: no draft was accepted in {PROMPTS} texts"
            print(f"{pair} {engine}: {accepted} of {PROMPTS * N_PREDICT} tokens were accepted drafts")
        return [list(answer.tokens) for answer in found]

    return cache(run)


def margins(target, prompt: list[int], answer: list[int], never: list[int]) -> torch.Tensor:
    """How far each token of the answer is below the best one, in reference logits; tokens in `never` do not count."""
    logits = target.run(prompt + answer).logits[len(prompt) - 1 : -1].clone()
    logits[:, never] = -torch.inf
    return logits.amax(-1) - logits.gather(-1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.parametrize(("pair", "engine"), [("qwen3", None), ("qwen35", None), *CASES])
def test_the_text_is_the_references_greedy_text(pair, engine, answers, held_out, target, end_tokens):
    worst, moved = 0.0, []
    for prompt, answer in zip(held_out(pair)[:PROMPTS], answers(pair, engine), strict=True):
        assert len(answer) == N_PREDICT
        margin = margins(target(pair), prompt, answer, end_tokens(pair))
        worst = max(worst, margin.max().item())
        if (margin > 0).any():
            first = int((margin > 0).nonzero()[0])
            moved.append(f"prompt {prompt[:8]}...: token {first} is {margin[first]:.2g} below the best")
    print(f"{pair} {engine}: {PROMPTS} texts x {N_PREDICT} tokens, not the argmax: {moved or 'none'}")
    assert worst <= TIE, f"the text is not greedy: {moved}"


def test_the_text_is_the_same_without_drafter(case, answers, held_out, target, end_tokens):
    plain, drafted = answers(case.pair, None), answers(case.pair, case.engine)
    different = []
    for prompt, a, b in zip(held_out(case.pair)[:PROMPTS], plain, drafted, strict=True):
        if a != b:
            first = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
            logits = target(case.pair).run(prompt + a[:first]).logits[-1]
            margin = (logits[a[first]] - logits[b[first]]).abs().item()
            different.append(f"token {first}: {a[first]} or {b[first]}, {margin:.2g} apart")
            assert margin <= TIE, f"{case}: texts differ where the reference is not undecided: {different[-1]}"
    print(f"{case}: {len(plain) - len(different)} of {len(plain)} texts equal; undecided: {different or 'none'}")


@pytest.mark.parametrize("pair", ["qwen3", "qwen35"])
def test_the_server_reads_prompts_as_the_reference_does(pair, bin_dir, tiny_gguf, held_out, tmp_path):
    prompts = json.loads((TINY / "prompts.json").read_text())
    with LlamaServer(bin_dir, tiny_gguf(pair, "target"), log=tmp_path / "server.log", extra=EXACT) as server:
        texts = [p["prompt"] if "prompt" in p else server.apply_template(p["messages"]) for p in prompts]
        got = [server.tokenize(text) for text in texts]
    wrong = [text for text, a, b in zip(texts, got, held_out(pair), strict=True) if a != b]
    assert not wrong, f"{pair}: {len(wrong)} of {len(texts)} prompts have other ids than in Hugging Face: {wrong[0]!r}"
