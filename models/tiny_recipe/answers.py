"""What a target itself says to training prompts: the text that a drafter will meet in use."""

from __future__ import annotations

from itertools import islice

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from .corpus import END_OF_TEXT, IM_END, render_chat, training_documents

ANSWER = 72  # new tokens
BATCH = 128


@torch.no_grad()
def greedy_answers(target: PreTrainedModel, tokenizer: Tokenizer, seed: int, documents: int) -> list[list[int]]:
    """Token ids of prompt, greedy answer and end of text, for the prompts of training documents.

    Prompts of similar length are answered together, padded on the left; this is data, so rounding does not matter.
    """
    end, message_end = tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(IM_END)
    newline = tokenizer.encode("\n").ids
    rendered = []
    for document in islice(training_documents(seed), documents):
        rendered.append(render_chat(document.turns[:-1], generation_prompt=True) if document.turns else document.head)
    prompts = sorted((encoding.ids for encoding in tokenizer.encode_batch(rendered)), key=len)
    texts = []
    for start in range(0, len(prompts), BATCH):
        group = prompts[start : start + BATCH]
        longest = max(map(len, group))
        ids = torch.tensor([[end] * (longest - len(prompt)) + prompt for prompt in group])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in group])
        out = target.generate(ids, attention_mask=mask, max_new_tokens=ANSWER, do_sample=False)
        for prompt, answer in zip(group, out[:, longest:].tolist(), strict=True):
            stop = next((i for i, token in enumerate(answer) if token in (end, message_end)), len(answer) - 1)
            answer = answer[: stop + 1]
            closing = [*newline, end] if answer[-1] == message_end else [] if answer[-1] == end else [end]
            texts.append([*prompt, *answer, *closing])
    return texts
