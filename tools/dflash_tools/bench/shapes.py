"""Models by their sizes alone: what a step costs depends on the shape, not on the weights.

Sizes are those of the published `config.json` files. Where that of a drafter could not be seen, `assumed` names what
was chosen to fit its target and its stated number of parameters. The tiny shapes have one of each kind of layer,
so that everything that handles a shape can be tried on a CPU in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dflash_tools.errors import UserError


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention. `gated`: the query projection also gives a gate; `window`: of every other layer."""

    heads: int
    kv_heads: int
    head_dim: int
    gated: bool = False
    qk_norm: bool = True
    bias: bool = False
    sinks: bool = False
    window: int = 0


@dataclass(frozen=True)
class DeltaNet:
    """Gated delta net in all layers but every `interval`-th, which attends."""

    value_heads: int
    key_heads: int
    head_dim: int
    conv: int = 4
    interval: int = 4

    @property
    def key_width(self) -> int:
        return self.key_heads * self.head_dim

    @property
    def value_width(self) -> int:
        return self.value_heads * self.head_dim

    @property
    def conv_width(self) -> int:
        return 2 * self.key_width + self.value_width


@dataclass(frozen=True)
class Experts:
    """`used` of `count` experts per row, each with a feed-forward of `width`; `shared` is the width of the one that
    every row uses.
    """

    count: int
    used: int
    width: int
    shared: int = 0
    bias: bool = False


@dataclass(frozen=True)
class Drafter:
    """A DFlash drafter. `taps` are HF layer ids: the outputs that it reads."""

    layers: int
    taps: tuple[int, ...]
    hidden: int
    feed_forward: int
    attention: Attention
    block: int = 16
    window: int = 0
    windowed_layers: int = 0
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    """A target with its drafter. `arch` is llama.cpp's name; `mix` the quantisation people mostly use for it."""

    name: str
    arch: str
    layers: int
    hidden: int
    vocab: int
    attention: Attention
    drafter: Drafter
    feed_forward: int = 0
    experts: Experts | None = None
    delta: DeltaNet | None = None
    rope_base: float = 1e6
    rope_freqs: bool = False
    tied: bool = False
    context: int = 262144  # more than the models were trained for, where that is what is asked
    mix: str = "q4_k_m"
    extra: dict[str, object] = field(default_factory=dict, hash=False)

    def attends(self, layer: int) -> bool:
        return self.delta is None or (layer + 1) % self.delta.interval == 0

    @property
    def attending(self) -> int:
        """Layers with a KV cache."""
        return sum(self.attends(i) for i in range(self.layers))


_QWEN3 = Attention(32, 8, 128)


def _qwen35(heads: int, kv_heads: int) -> Attention:
    return Attention(heads, kv_heads, 256, gated=True)


def _drafter(hidden: int, feed_forward: int, taps: tuple[int, ...], layers: int = 5, **more: object) -> Drafter:
    return Drafter(layers, taps, hidden, feed_forward, _QWEN3, **more)  # type: ignore[arg-type]


_TAPS_36 = (1, 9, 17, 25, 33)
_TAPS_32 = (1, 8, 15, 22, 29)
_TAPS_40 = (1, 10, 19, 28, 37)
_TAPS_64 = (1, 16, 31, 46, 61)
_WINDOW_36 = {"window": 2048, "windowed_layers": 4}  # Qwen3.6 drafters: all but the last layer

_QWEN35_27B = {
    "arch": "qwen35", "layers": 64, "hidden": 5120, "vocab": 248320, "feed_forward": 17408, "attention": _qwen35(24, 4),
    "delta": DeltaNet(48, 16, 128), "rope_base": 1e7,
}  # fmt: skip
_QWEN35_35B = {
    "arch": "qwen35moe", "layers": 40, "hidden": 2048, "vocab": 248320, "attention": _qwen35(16, 2),
    "experts": Experts(256, 8, 512, shared=512), "delta": DeltaNet(32, 16, 128), "rope_base": 1e7,
}  # fmt: skip
_QWEN35_4B = {
    "arch": "qwen35", "layers": 32, "hidden": 2560, "vocab": 248320, "feed_forward": 9216, "attention": _qwen35(16, 4),
    "delta": DeltaNet(32, 16, 128), "rope_base": 1e7, "tied": True,
}  # fmt: skip
_QWEN35_9B = {
    "arch": "qwen35", "layers": 32, "hidden": 4096, "vocab": 248320, "feed_forward": 12288, "attention": _qwen35(16, 4),
    "delta": DeltaNet(32, 16, 128), "rope_base": 1e7,
}  # fmt: skip

_TINY_DRAFTER = Drafter(1, (0, 2), 256, 512, Attention(4, 2, 64), block=8)
_TINY = {"layers": 4, "hidden": 256, "vocab": 512, "drafter": _TINY_DRAFTER}

SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "qwen3-4b", "qwen3", 36, 2560, 151936, _QWEN3, _drafter(2560, 9728, _TAPS_36), feed_forward=9728,
            tied=True,
        ),
        Shape(
            "qwen3-8b", "qwen3", 36, 4096, 151936, _QWEN3, _drafter(4096, 12288, _TAPS_36), feed_forward=12288,
        ),
        Shape(
            "llama-3.1-8b", "llama", 32, 4096, 128256, Attention(32, 8, 128, qk_norm=False),
            _drafter(4096, 14336, _TAPS_32, assumed=("layers", "taps", "block", "feed_forward")),
            feed_forward=14336, rope_base=5e5, rope_freqs=True,
        ),
        Shape("qwen3.5-4b", drafter=_drafter(2560, 9216, _TAPS_32, assumed=("taps",)), **_QWEN35_4B),
        Shape("qwen3.5-9b", drafter=_drafter(4096, 12288, _TAPS_32), **_QWEN35_9B),
        Shape("qwen3.5-27b", drafter=_drafter(5120, 17408, _TAPS_64), **_QWEN35_27B),
        Shape("qwen3.6-27b", drafter=_drafter(5120, 17408, _TAPS_64, **_WINDOW_36), **_QWEN35_27B),
        Shape(
            "qwen3.5-35b-a3b",
            drafter=_drafter(2048, 6144, _TAPS_40, 8, assumed=("layers", "feed_forward")), **_QWEN35_35B,
        ),
        Shape(
            "qwen3.6-35b-a3b",
            drafter=_drafter(
                2048, 6144, _TAPS_40, 8, window=4096, windowed_layers=7, assumed=("layers", "taps", "feed_forward")
            ),
            **_QWEN35_35B,
        ),
        Shape(
            "gpt-oss-20b", "gpt-oss", 24, 2880, 201088,
            Attention(64, 8, 64, qk_norm=False, bias=True, sinks=True, window=128),
            # 0.8 B parameters are stated; these sizes give them
            _drafter(2880, 7680, (1, 6, 11, 16, 21), 8, assumed=("layers", "taps", "block", "feed_forward")),
            experts=Experts(32, 4, 2880, bias=True), rope_base=1.5e5, mix="mxfp4",
            extra={
                "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0,
                "rope.scaling.original_context_length": 4096,
            },
        ),
        Shape("tiny-attention", "qwen3", attention=Attention(4, 2, 64), feed_forward=512, **_TINY),
        Shape(
            "tiny-llama", "llama", attention=Attention(4, 2, 64, qk_norm=False), feed_forward=512, rope_freqs=True,
            **_TINY,
        ),
        Shape(
            "tiny-hybrid", "qwen35", attention=Attention(4, 2, 64, gated=True), feed_forward=512,
            delta=DeltaNet(4, 2, 64), tied=True, **_TINY,
        ),
        Shape(
            "tiny-hybrid-moe", "qwen35moe", attention=Attention(4, 2, 64, gated=True),
            experts=Experts(8, 2, 256, shared=256), delta=DeltaNet(4, 2, 64), **_TINY,
        ),
        Shape(
            "tiny-moe", "gpt-oss", attention=Attention(4, 2, 64, qk_norm=False, bias=True, sinks=True, window=128),
            experts=Experts(4, 2, 256, bias=True), mix="mxfp4", **_TINY,
        ),
    )
}  # fmt: skip


def find_shape(name: str) -> Shape:
    """The shape of that name. Raises UserError naming those there are."""
    if name not in SHAPES:
        raise UserError(f"no shape is called {name!r}; there are {', '.join(SHAPES)}")
    return SHAPES[name]
