"""Servers for the tests, each started once, and the comparison every test makes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiled import compiled
from dflash_tools.client import Completion, LlamaClient
from dflash_tools.compare import first_difference
from dflash_tools.server import LlamaServer
from dflash_tools.tiny import TinyPair

UBATCH = 64
BATCH = 128
CONTEXT = 1024
SMALL_CONTEXT = 256

# f32 KV and no flash attention for the same reason as f32 weights (tests/conftest.py): flash attention takes K and V in
# f16, whatever the cache holds. test_default_options.py serves with the server's own choice.
EXACT = ("-ctk", "f32", "-ctv", "f32", "-fa", "off")
COMMON = ("-t", "1", "-b", str(BATCH), "-ub", str(UBATCH), "--no-warmup")

LAYOUTS = {
    1: ("-np", "1", "-c", str(CONTEXT)),
    2: ("-np", "2", "-c", str(2 * CONTEXT), "--no-kv-unified"),
    4: ("-np", "4", "-c", str(4 * CONTEXT), "--no-kv-unified"),
}
# What the server does when nobody says -np: four slots share one cache.
UNIFIED = ("-np", "4", "-c", str(CONTEXT), "--kv-unified")
# Many short answers at once; the block of every slot has to fit into one micro-batch.
MANY = ("-np", "16", "-c", "2048", "--no-kv-unified", "-ub", str(BATCH))
SMALL = ("-np", "1", "-c", str(SMALL_CONTEXT))

# On a GPU products of few columns round f32 to TF32, which moved probabilities by up to 0.009 nats. On the CPU no
# near-tie is allowed.
GPU_NEAR_TIE = 0.02


class TinyServer(LlamaServer):
    """Where another token than the likeliest is no fault if it is less likely by no more than `near_tie` nats."""

    near_tie = 0.0


@dataclass
class Serving:
    """Starts the servers of the tests on demand and keeps them until the session ends."""

    bin_dir: Path
    tiny_gguf: Callable[[str, str], Path]
    logs: Path
    stack: ExitStack
    on_gpu: bool = False
    running: dict[tuple[Any, ...], TinyServer] = field(default_factory=dict)

    def plain(self, pair: TinyPair, layout: Sequence[str] = LAYOUTS[1]) -> TinyServer:
        """The pair's target without its drafter; pairs of one family share it."""
        return self._start(pair.family, None, (), tuple(layout))

    def drafted(self, pair: TinyPair, layout: Sequence[str] = LAYOUTS[1]) -> TinyServer:
        return self._start(pair.family, pair.engine, pair.switch, tuple(layout))

    def _start(self, family: str, engine: str | None, switch: tuple[str, ...], layout: tuple[str, ...]) -> TinyServer:
        key = family, engine, layout
        if key not in self.running:
            drafter = self.tiny_gguf(family, engine) if engine else None
            server = TinyServer(
                self.bin_dir,
                self.tiny_gguf(family, "target"),
                drafter,
                switch=switch,
                extra=(*COMMON, *EXACT, *layout),
                log=self.logs / f"{len(self.running):02}-{family}-{engine or 'plain'}.log",
                timeout=120.0,
            )
            server.near_tie = GPU_NEAR_TIE if self.on_gpu else 0.0
            self.running[key] = self.stack.enter_context(server)
        return self.running[key]


@dataclass(frozen=True)
class Request:
    """One /completion request; `prompt` in token ids, so that its length is exact."""

    prompt: tuple[int, ...]
    params: dict[str, Any]

    def send(self, server: LlamaClient, **more: Any) -> Completion:
        return server.completion(self.prompt, **{"temperature": 0.0, "return_tokens": True, **self.params, **more})

    def stream(self, server: LlamaClient) -> Completion:
        params = {"temperature": 0.0, "return_tokens": True, **self.params}
        with server.stream_completion(self.prompt, **params) as stream:
            return stream.completion()


def preloadable(source: Path, bin_dir: Path, folder: Path) -> Path:
    """`source` as a library for LD_PRELOAD, which can only come before functions of shared libraries."""
    return compiled(source, folder / f"{source.stem}.so", bin_dir, "-shared", "-fPIC", "-ldl")


def assert_same(plain: TinyServer, request: Request, expected: Completion, found: Completion) -> None:
    """Text, token ids and reason to end are those of plain decoding, and the drafter took part.

    A failure names the first differing token and how near a tie it was. On a GPU a text may go another way from a
    near-tie on, which is a warning.
    """
    difference = first_difference(plain, request.prompt, expected, found)
    if difference and difference.margin is not None and abs(difference.margin) <= plain.near_tie:
        warnings.warn(f"a near-tie on a GPU: {difference}", stacklevel=2)
    else:
        assert difference is None, f"{difference}\n  plain   {expected.text!r}\n  drafted {found.text!r}"
        assert found.truncated == expected.truncated
    assert expected.timings.draft_n == 0, "the reference run used a drafter"
    # The first token comes from the prompt, and the last one allowed needs no draft.
    if found.timings.predicted_n > 2:
        assert found.timings.draft_n > 0, "the drafter did not take part"
