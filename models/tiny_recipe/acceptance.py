"""Measure how many tokens a drafter saves: greedy speculation that recomputes everything, so it cannot be wrong.

Each round runs the target once over the whole text plus the draft, without a cache, and keeps what agrees. That is
exact for attention and recurrent targets alike (no state is ever rolled back), and cheap at this size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from . import dflash, eagle3

Draft = Callable[[Tensor, tuple[Tensor, ...]], list[int]]
"""(text ids [n], hidden states of positions 0..n-2) -> guesses of what follows; the last id has no features yet."""


@dataclass
class Acceptance:
    """Rounds of one or many texts. A round yields its accepted guesses and one token of the target."""

    lengths: Counter[int] = field(default_factory=Counter)
    drafts: list[list[int]] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        return self.lengths.total()

    @property
    def mean_length(self) -> float:
        """Tokens out per verify step, the target's own token included."""
        return sum(length * count for length, count in self.lengths.items()) / max(1, self.rounds)

    def slots_that_differ(self) -> Tensor:
        """[d, d] share of drafts in which two places hold different tokens."""
        drafts = torch.tensor([draft for draft in self.drafts if len(draft) == max(map(len, self.drafts))])
        return (drafts[:, :, None] != drafts[:, None, :]).float().mean(0)


@torch.no_grad()
def greedy(target: PreTrainedModel, prompt: list[int], tokens: int, ends: Sequence[int]) -> list[int]:
    """The target's own greedy continuation, with its cache, one token at a time; an end token is the last."""
    ids, cache, out = torch.tensor([prompt]), None, []
    while len(out) < tokens and not (out and out[-1] in ends):
        result = target(ids, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        out.append(int(result.logits[0, -1].argmax()))
        ids = torch.tensor([[out[-1]]])
    return out


@torch.no_grad()
def speculate(
    target: PreTrainedModel, draft: Draft, prompt: list[int], tokens: int, ends: Sequence[int], tally: Acceptance
) -> list[int]:
    """The same continuation, verified in blocks. The first token comes from the prompt's pass and is in no round."""
    result = target(torch.tensor([prompt]), output_hidden_states=True, use_cache=False)
    text = [*prompt, int(result.logits[0, -1].argmax())]
    states = result.hidden_states
    while len(text) - len(prompt) < tokens and text[-1] not in ends:
        guesses = draft(torch.tensor(text), states)
        result = target(torch.tensor([text + guesses]), output_hidden_states=True, use_cache=False)
        said = result.logits[0, len(text) - 1 :].argmax(-1).tolist()
        accepted = 0
        while accepted < len(guesses) and guesses[accepted] == said[accepted]:
            accepted += 1
        new = said[: accepted + 1]
        tally.drafts.append(guesses)
        stop = next((i for i, token in enumerate(new) if token in ends), len(new) - 1)
        new = new[: min(stop + 1, tokens - (len(text) - len(prompt)))]
        tally.lengths[len(new)] += 1
        text += new
        states = tuple(state[:, : len(text) - 1] for state in result.hidden_states)
    return text[len(prompt) :]


def dflash_draft(target: PreTrainedModel, drafter: dflash.DFlash) -> Draft:
    """The seven guesses of one block."""

    def draft(text: Tensor, states: tuple[Tensor, ...]) -> list[int]:
        n = len(text) - 1
        block = torch.full((1, dflash.BLOCK), drafter.shape.mask_token)
        block[0, 0] = text[-1]
        positions = n + torch.arange(dflash.BLOCK)[None]
        mask = torch.ones(1, 1, dflash.BLOCK, n + dflash.BLOCK, dtype=torch.bool)
        features = dflash.features_of(states, drafter.shape.taps)
        hidden = drafter(target.get_input_embeddings()(block), positions, features, mask)
        return target.lm_head(hidden[0, 1:]).argmax(-1).tolist()

    return draft


def eagle3_draft(target: PreTrainedModel, drafter: eagle3.Eagle3, ids_kept: Tensor, depth: int) -> Draft:
    """A chain of `depth` guesses."""

    def draft(text: Tensor, states: tuple[Tensor, ...]) -> list[int]:
        embed = target.get_input_embeddings()
        state = drafter.fc(eagle3.features_of(states, drafter.shape.taps))
        embedded, earlier, guesses = embed(text[None, 1:]), [], []
        for step in range(depth):
            # as in training every row is the root of a chain; only the last row's chain is wanted
            logits, state = drafter(embedded, state, step, earlier)
            guesses.append(int(ids_kept[logits[0, -1].argmax()]))
            embedded = embed(torch.tensor([[guesses[-1]]])).expand_as(state)
        return guesses

    return draft
