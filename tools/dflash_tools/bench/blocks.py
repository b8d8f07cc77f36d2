"""Valid quantised blocks of random weights, as bytes to write.

A slab of each type is made once and written again and again from shifting places: a model of any size then costs what
writing its bytes costs. The scales are those of weights with the given deviation; the quants are uniform noise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T

DEVIATION = 0.02
SLAB_BYTES = 8 << 20

Maker = Callable[[np.random.Generator, int], np.ndarray]

# Deviation of uniform integers of so many bits, e.g. sqrt((2^4)^2 / 12).
_DEVIATION_OF_BITS = {bits: (2.0**bits) / np.sqrt(12.0) for bits in (4, 5, 6, 8)}
# Of the 16 values of E2M1 (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives).
_DEVIATION_OF_E2M1 = 2.926


@functools.cache
def slab(kind: T, seed: int = 0) -> memoryview:
    """About SLAB_BYTES of whole blocks of `kind`. Raises KeyError for a type that no mix uses."""
    size = GGML_QUANT_SIZES[kind][1]
    rng = np.random.default_rng([seed, int(kind)])
    return memoryview(np.ascontiguousarray(_MAKERS[kind](rng, SLAB_BYTES // size))).cast("B")


def pieces(kind: T, elements: int, rng: np.random.Generator) -> Iterator[memoryview]:
    """The bytes of `elements` random weights, in pieces of at most a slab. `elements` is a whole number of blocks."""
    block, size = GGML_QUANT_SIZES[kind]
    left = elements // block * size
    source = slab(kind)
    start = int(rng.integers(0, len(source) // size)) * size
    while left:
        piece = source[start : start + left]
        yield piece
        left -= len(piece)
        start = 0


def _halves(rng: np.random.Generator, blocks: int, scale: float) -> np.ndarray:
    """One f16 scale a block, up to a quarter off, as (blocks, 2) bytes."""
    scales = (scale * rng.uniform(0.75, 1.25, blocks)).astype(np.float16)
    return scales.view(np.uint8).reshape(blocks, 2)


def _noise(rng: np.random.Generator, blocks: int, size: int) -> np.ndarray:
    return np.frombuffer(rng.bytes(blocks * size), np.uint8).reshape(blocks, size).copy()


def _k4_or_k5(bits: int) -> Maker:
    def make(rng: np.random.Generator, blocks: int) -> np.ndarray:
        """d, dmin: f16; 12 bytes of 6-bit scales and mins, all 32; quants q. w = d * 32 * q - dmin * 32."""
        out = _noise(rng, blocks, 144 if bits == 4 else 176)
        scale = DEVIATION / _DEVIATION_OF_BITS[bits] / 32
        out[:, 0:2] = _halves(rng, blocks, scale)
        middle = (2**bits - 1) / 2
        out[:, 2:4] = (out[:, 0:2].copy().view(np.float16) * np.float16(middle)).view(np.uint8)
        # 32 is 0b100000: sub-blocks 0 to 3 keep all six bits in bytes 0 to 7, whose top two bits are the top of 4 to 7
        out[:, 4:12] = 32 | (32 >> 4) << 6
        out[:, 12:16] = 0
        return out

    return make


def _q6_k(rng: np.random.Generator, blocks: int) -> np.ndarray:
    """128 + 64 bytes of quants, 16 int8 scales, d: f16. w = d * scale * (q - 32)."""
    out = _noise(rng, blocks, 210)
    out[:, 192:208] = 16
    out[:, 208:210] = _halves(rng, blocks, DEVIATION / _DEVIATION_OF_BITS[6] / 16)
    return out


def _q8_0(rng: np.random.Generator, blocks: int) -> np.ndarray:
    out = _noise(rng, blocks, 34)
    out[:, 0:2] = _halves(rng, blocks, DEVIATION / _DEVIATION_OF_BITS[8])
    return out


def _q5_0(rng: np.random.Generator, blocks: int) -> np.ndarray:
    out = _noise(rng, blocks, 22)
    out[:, 0:2] = _halves(rng, blocks, DEVIATION / _DEVIATION_OF_BITS[5])
    return out


def _q5_1(rng: np.random.Generator, blocks: int) -> np.ndarray:
    """d, m: f16; w = d * q + m."""
    out = _noise(rng, blocks, 24)
    out[:, 0:2] = _halves(rng, blocks, DEVIATION / _DEVIATION_OF_BITS[5])
    out[:, 2:4] = (out[:, 0:2].copy().view(np.float16) * np.float16(-15.5)).view(np.uint8)
    return out


def _mxfp4(rng: np.random.Generator, blocks: int) -> np.ndarray:
    """e: the exponent of the scale, 2^(e - 127); 16 bytes of E2M1 pairs."""
    out = _noise(rng, blocks, 17)
    out[:, 0] = 127 + round(np.log2(DEVIATION / _DEVIATION_OF_E2M1))
    return out


def _bf16(rng: np.random.Generator, blocks: int) -> np.ndarray:
    values = (rng.standard_normal(blocks, np.float32) * np.float32(DEVIATION)).view(np.uint32)
    return (values >> 16).astype(np.uint16)


def _f16(rng: np.random.Generator, blocks: int) -> np.ndarray:
    return (rng.standard_normal(blocks, np.float32) * np.float32(DEVIATION)).astype(np.float16)


def _f32(rng: np.random.Generator, blocks: int) -> np.ndarray:
    return rng.standard_normal(blocks, np.float32) * np.float32(0.3)


_MAKERS = {
    T.Q4_K: _k4_or_k5(4),
    T.Q5_K: _k4_or_k5(5),
    T.Q6_K: _q6_k,
    T.Q8_0: _q8_0,
    T.Q5_0: _q5_0,
    T.Q5_1: _q5_1,
    T.MXFP4: _mxfp4,
    T.BF16: _bf16,
    T.F16: _f16,
    T.F32: _f32,
}
