"""Documents to batches of token ids: packed end to end, each row starting with a document."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .corpus import END_OF_TEXT, training_documents

CHUNK = 256  # documents per call of the tokenizer


def document_ids(tokenizer: Tokenizer, seed: int) -> Iterator[list[int]]:
    """Token ids of one training document after the other, each closed by the end-of-text token."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    stream = training_documents(seed)
    while True:
        for encoding in tokenizer.encode_batch([next(stream).render() for _ in range(CHUNK)]):
            yield [*encoding.ids, end]


def pack(documents: Iterator[list[int]], rows: int, length: int) -> Tensor:
    """The next [rows, length] ids. The last document of a row is cut where the row ends."""
    batch = []
    for _ in range(rows):
        row: list[int] = []
        while len(row) < length:
            row += next(documents)
        batch.append(row[:length])
    return torch.tensor(batch)
