"""The tiny pairs behind llama-server, with and without their drafters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from itertools import cycle
from pathlib import Path

import pytest
from dflash_tools.tiny import TINY_PAIRS, TinyPair, held_out_prompts
from serving import Serving


@pytest.fixture(scope="session")
def serving(
    bin_dir: Path, tiny_gguf: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory, on_gpu: bool
) -> Iterator[Serving]:
    with ExitStack() as stack:
        yield Serving(bin_dir, tiny_gguf, tmp_path_factory.mktemp("server-logs"), stack, on_gpu)


@pytest.fixture(scope="session", params=TINY_PAIRS, ids=lambda pair: f"{pair.family}-{pair.engine}")
def pair(request: pytest.FixtureRequest) -> TinyPair:
    return request.param


@pytest.fixture(scope="session")
def prompt(serving: Serving) -> Callable[[TinyPair, int, int], tuple[int, ...]]:
    """`prompt(pair, n, start)`: exactly `n` tokens, held-out prompts joined from number `start` on."""

    @cache
    def pieces(family: str) -> list[list[int]]:
        server = serving.plain(next(pair for pair in TINY_PAIRS if pair.family == family))
        texts = [p["prompt"] if "prompt" in p else server.apply_template(p["messages"]) for p in held_out_prompts()]
        return [server.tokenize(text) for text in texts]

    def tokens(pair: TinyPair, length: int, start: int = 0) -> tuple[int, ...]:
        found: list[int] = []
        source = cycle(pieces(pair.family)[start:] + pieces(pair.family)[:start])
        while len(found) < length:
            # Later pieces go in front, so that the prompt ends where a held-out prompt ends.
            found = next(source) + found
        return tuple(found[-length:])

    return tokens
