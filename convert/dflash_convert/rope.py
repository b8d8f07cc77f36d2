"""Rotary position embedding: what a config says, resolved, and the GGUF keys that say the same.

Hugging Face writes it as `rope_theta` + `rope_scaling` (transformers 4) or as `rope_parameters` (5). llama.cpp reads
linear and yarn scaling from keys, and llama3 scaling as one factor per pair of dimensions (`rope_freqs.weight`). Of
yarn's own settings its drafters read none (the keys exist, for other architectures): yarn that is not the default one
is written as factors as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from dflash_tools.errors import UserError, join_words

from dflash_convert.gguf_file import Metadata, f32, i32_array, text, u32
from dflash_convert.jsonfile import MAX_FLOAT, Config

REPRESENTABLE = "none, linear, yarn and llama3"


@dataclass(frozen=True)
class Rope:
    """`theta` None: not stated, llama.cpp's default (10000) holds. `freq_factors` divide the frequencies."""

    theta: float | None
    scaling: Metadata = field(default_factory=dict)
    partial: float | None = None
    sections: tuple[int, ...] | None = None
    freq_factors: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()

    def keys(self) -> Metadata:
        """GGUF keys without the architecture's prefix."""
        found = dict(self.scaling)
        if self.theta is not None:
            found["rope.freq_base"] = f32(self.theta)
        return found


def read_rope(config: Config, head_dim: int, default_theta: float | None) -> Rope:
    """The rope of a drafter config.

    `default_theta` stands in when the config states none, as the model type's own default does in transformers. Raises
    UserError for scaling that no GGUF key can express; nothing is dropped in silence.
    """
    key = next((k for k in ("rope_scaling", "rope_parameters") if config.values.get(k)), "rope_parameters")
    params = config.section(key)
    nested = [k for k, v in params.values.items() if isinstance(v, dict)]
    if nested:
        raise UserError(
            f"{params.where(nested[0])}: a rope of its own for {' and '.join(nested)}; a GGUF drafter has one for all"
        )
    theta, other = (place.optional_number("rope_theta", positive=True) for place in (params, config))
    said = _contradictions(key, params, config)
    theta = next((base for base in (theta, other) if base is not None), default_theta)
    kind = (params.string("rope_type") or params.string("type") or "default").lower()
    partial = params if params.has("partial_rotary_factor") else config
    sections = tuple(params.integers("mrope_section")) or None
    share = _partial(partial, head_dim)
    scaling, factors, notes = _scaling_keys(params, config, kind), None, said
    if kind == "llama3":
        factors = _finite(params, lambda: _llama3_factors(params, config, head_dim, theta or 1e4))
    elif kind == "yarn" and not _is_default_yarn(params):
        scaling = {"rope.scaling.attn_factor": f32(_yarn_attention(params))}
        factors = _finite(params, lambda: _yarn_factors(params, config, head_dim, theta or 1e4))
        notes += ("yarn with settings of its own: written as a factor for each frequency, as llama.cpp's drafters read "
                  "none of these settings",)  # fmt: skip
    if factors is not None and share not in (None, 1.0):
        raise UserError(f"{partial.where('partial_rotary_factor')}: together with {kind} rope scaling it is not read")
    return Rope(
        theta=theta,
        scaling=scaling,
        partial=share,
        sections=(sections + (0,) * 4)[:4] if sections else None,
        freq_factors=factors,
        notes=notes,
    )


def _contradictions(key: str, params: Config, config: Config) -> tuple[str, ...]:
    """A sentence for each other place that says something else than `params`, which is config[key]."""
    said = []
    theta, other = (place.values.get("rope_theta") for place in (params, config))
    if None not in (theta, other) and theta != other:
        said.append(f"{key}.rope_theta is {theta} and holds; rope_theta beside it says {other}")
    beside = config.section("rope_parameters").values if key == "rope_scaling" else {}
    held = {**params.values, "rope_type": params.values.get("rope_type") or params.values.get("type")}
    differs = sorted(k for k, v in beside.items() if k != "type" and v is not None and v != held.get(k))
    if differs:
        said.append(f"rope_scaling holds, as in transformers; rope_parameters differs in {join_words(differs)}")
    return tuple(said)


def _partial(place: Config, head_dim: int) -> float | None:
    """The share of a head's dimensions that is rotated."""
    share = place.optional_number("partial_rotary_factor", positive=True)
    if share is not None and (share > 1 or int(head_dim * share) % 2 or int(head_dim * share) == 0):
        raise UserError(
            f"{place.where('partial_rotary_factor')} is {share}; an even number of the {head_dim} dimensions of a head "
            "must be rotated"
        )
    return share


def _scaling_keys(params: Config, config: Config, kind: str) -> Metadata:
    if kind in ("default", "none", "mrope", "llama3"):
        return {}
    if kind == "linear":
        return {"rope.scaling.type": text("linear"), "rope.scaling.factor": f32(params.number("factor", positive=True))}
    if kind != "yarn":
        raise UserError(
            f"{params.where('rope_type')} is {kind!r}; rope scaling that a GGUF drafter can express: {REPRESENTABLE}"
        )
    keys = {
        "rope.scaling.type": text("yarn"),
        "rope.scaling.factor": f32(params.number("factor", positive=True)),
        "rope.scaling.original_context_length": u32(_original_context(params, config)),
    }
    attention = "attention_factor" if params.has("attention_factor") else "attn_factor"
    for gguf_key, hf_key in (
        ("yarn_ext_factor", "extrapolation_factor"),
        ("yarn_attn_factor", attention),
        ("yarn_beta_fast", "beta_fast"),
        ("yarn_beta_slow", "beta_slow"),
    ):
        if (value := params.optional_number(hf_key)) is not None:
            keys[f"rope.scaling.{gguf_key}"] = f32(value)
    return keys


def _original_context(params: Config, config: Config) -> int:
    """The context length that the scaling extends."""
    key = "original_max_position_embeddings"
    for place in (config, params):
        if place.has(key):
            return place.integer(key, least=1)
    if not config.has("max_position_embeddings"):
        raise UserError(f"{params.where(key)} is missing; the scaling extends it")
    return config.integer("max_position_embeddings", least=1)


def _llama3_factors(params: Config, config: Config, head_dim: int, theta: float) -> tuple[float, ...]:
    """What each of the head_dim / 2 frequencies is divided by.

    The rule of Llama 3.1: wavelengths above original / low_freq_factor are scaled by `factor`, those below
    original / high_freq_factor stay, between them the reciprocal moves linearly. Computed in float32 as transformers
    and llama.cpp's converter do.
    """
    factor = params.number("factor", positive=True) if params.has("factor") else 8.0
    low = params.number("low_freq_factor", positive=True) if params.has("low_freq_factor") else 1.0
    high = params.number("high_freq_factor", positive=True) if params.has("high_freq_factor") else 4.0
    if high <= low:
        raise UserError(f"{params.where('high_freq_factor')} is {high}, not above low_freq_factor ({low})")
    original = _original_context(params, config)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1.0) / np.power(np.float32(theta), exponents)
    factors = []
    for frequency in frequencies:
        wavelength = np.float32(2 * math.pi) / frequency
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
            factors.append(float(np.float32(1) / ((np.float32(1) - smooth) / np.float32(factor) + smooth)))
    return tuple(factors)


def _finite(params: Config, make: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
    """What `make` gives. Raises UserError unless a GGUF can hold it: numbers that make no sense end in infinity."""
    try:
        with np.errstate(all="ignore"):
            factors = make()
            good = bool(np.isfinite(np.array(factors, dtype=np.float32)).all())
    except (OverflowError, ZeroDivisionError):
        good = False
    if not good:
        raise UserError(f"{params.where('factor')} and what stands beside it give frequencies that are not finite")
    return factors


def _is_default_yarn(params: Config) -> bool:
    """Whether llama.cpp, which knows yarn's factor and original length alone, computes what the config means."""
    fast, slow, extrapolation = _yarn_range(params)
    usual = math.isclose(_yarn_attention(params), _attention_scale(_yarn_factor(params)), rel_tol=1e-6)
    return (fast, slow, extrapolation) == (32.0, 1.0, 1.0) and params.flag("truncate", True) and usual


def _yarn_factor(params: Config) -> float:
    return params.number("factor", positive=True)


def _yarn_range(params: Config) -> tuple[float, float, float]:
    """Turns within the original length from which on frequencies stay, below which they are scaled; and the share of
    the original frequency in those that stay."""
    fast, slow = (params.optional_number(f"beta_{end}") or usual for end, usual in (("fast", 32.0), ("slow", 1.0)))
    share = params.optional_number("extrapolation_factor")
    if fast <= 0 or slow <= 0 or not 0 <= (1.0 if share is None else share) <= 1:
        raise UserError(f"{params.where('beta_fast')}, beta_slow or extrapolation_factor is out of its range")
    return fast, slow, 1.0 if share is None else share


def _yarn_attention(params: Config) -> float:
    """The factor on cosine and sine: as stated, else 1 + ln(factor) / 10 or the quotient of two such (`mscale`).

    transformers' `attention_factor` is all of it, vLLM's `attn_factor` is multiplied with the usual one.
    """
    factor, stated = _yarn_factor(params), params.optional_number("attention_factor", positive=True)
    if stated is not None:
        return stated
    scale, of_all = params.optional_number("mscale"), params.optional_number("mscale_all_dim")
    usual = _attention_scale(factor, scale) / _attention_scale(factor, of_all) if scale and of_all else None
    more = params.optional_number("attn_factor", positive=True)
    found = (_attention_scale(factor) if usual is None else usual) * (1.0 if more is None else more)
    if found > MAX_FLOAT:
        raise UserError(f"{params.where('factor')} and what stands beside it give a factor of {found:.4g} on attention")
    return found


def _attention_scale(factor: float, weight: float = 1.0) -> float:
    return 1.0 + max(0.0, weight) * math.log(max(1.0, factor)) / 10


def _yarn_factors(params: Config, config: Config, head_dim: int, theta: float) -> tuple[float, ...]:
    """What each of the head_dim / 2 frequencies is divided by (https://arxiv.org/abs/2309.00071, section 3.2).

    Between the dimensions that turn `beta_fast` and `beta_slow` times within the original length, the frequency goes
    linearly from itself to itself / factor.
    """
    if theta <= 1:
        raise UserError(f"{params.where('rope_theta')} is {theta}; yarn needs a base above 1")
    fast, slow, share = _yarn_range(params)
    original, factor = _original_context(params, config), _yarn_factor(params)
    low, high = (head_dim * math.log(original / (2 * math.pi * n)) / (2 * math.log(theta)) for n in (fast, slow))
    if params.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (np.arange(head_dim // 2) - low) / (high - low or 0.001)
    kept = share * (1 - ramp.clip(0, 1))
    return tuple((1 / ((1 - kept) / factor + kept)).tolist())


def sections_for_mrope(head_dim: int) -> Metadata:
    """Rope sections of a drafter for an M-RoPE target: it rotates by the time axis alone."""
    return {"rope.dimension_sections": i32_array([head_dim // 2, 0, 0, 0])}
