"""A shape as llama.cpp loads it: the tensors with their names, and the keys of the header.

Names and extents are those `load_arch_tensors` asks for in llama.cpp's src/models/{qwen3,llama,qwen35,qwen35moe,
openai-moe,dflash}.cpp; extents are in GGUF order, the contiguous one first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dflash_tools.bench.shapes import Attention, Drafter, Experts, Shape


@dataclass(frozen=True)
class Tensor:
    """`part` is the name without layer and ending; `experts` the number of experts of the model, which llama-quantize
    looks at. `fill` is `noise` (weights), `ones` (norms), `zeros` (biases) or `minus` (minus one, for decays); only
    noise is ever quantised, and noise to `keep` stays in float32.
    """

    name: str
    shape: tuple[int, ...]
    fill: str = "noise"
    keep: bool = False
    experts: int = 0

    @property
    def quantised(self) -> bool:
        return self.fill == "noise" and not self.keep

    @property
    def layer(self) -> int:
        return int(self.name.split(".")[1]) if self.name.startswith("blk.") else -1

    @property
    def part(self) -> str:
        words = self.name.split(".")
        return words[2] if words[0] == "blk" else words[0]

    @property
    def elements(self) -> int:
        count = 1
        for extent in self.shape:
            count *= extent
        return count


def target_tensors(shape: Shape) -> list[Tensor]:
    """All tensors of the target, in the order they are written."""
    count = shape.experts.count if shape.experts else 0
    tensors = [Tensor("token_embd.weight", (shape.hidden, shape.vocab), experts=count)]
    if not shape.tied:
        tensors.append(Tensor("output.weight", (shape.hidden, shape.vocab), experts=count))
    tensors.append(_ones("output_norm", shape.hidden))
    if shape.rope_freqs:
        tensors.append(Tensor("rope_freqs.weight", (shape.attention.head_dim // 2,), "ones"))
    for i in range(shape.layers):
        tensors += _layer(shape, i, count)
    return tensors


def _layer(shape: Shape, i: int, count: int) -> Iterator[Tensor]:
    p, hidden = f"blk.{i}.", shape.hidden
    second = "ffn_norm" if shape.arch in ("qwen3", "llama") else "post_attention_norm"
    yield _ones(p + "attn_norm", hidden)
    yield _ones(p + second, hidden)
    if shape.attends(i):
        yield from _attention(p, hidden, shape.attention, count)
    else:
        yield from _delta(p, shape, count)
    if shape.experts:
        yield from _experts(p, hidden, shape.experts)
    else:
        yield from _dense(p, hidden, shape.feed_forward, count)


def _attention(p: str, hidden: int, a: Attention, count: int) -> Iterator[Tensor]:
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    for name, inside, outside in (
        ("attn_q", hidden, q * (2 if a.gated else 1)),
        ("attn_k", hidden, kv),
        ("attn_v", hidden, kv),
        ("attn_output", q, hidden),
    ):
        yield Tensor(f"{p}{name}.weight", (inside, outside), experts=count)
        if a.bias:
            yield Tensor(f"{p}{name}.bias", (outside,), "zeros")
    if a.qk_norm:
        yield _ones(p + "attn_q_norm", a.head_dim)
        yield _ones(p + "attn_k_norm", a.head_dim)
    if a.sinks:
        yield Tensor(f"{p}attn_sinks.weight", (a.heads,), "zeros")


def _delta(p: str, shape: Shape, count: int) -> Iterator[Tensor]:
    d, hidden = shape.delta, shape.hidden
    assert d is not None
    for name, inside, outside in (
        ("attn_qkv", hidden, d.conv_width),
        ("attn_gate", hidden, d.value_width),
        ("ssm_beta", hidden, d.value_heads),
        ("ssm_alpha", hidden, d.value_heads),
        ("ssm_out", d.value_width, hidden),
    ):
        yield Tensor(f"{p}{name}.weight", (inside, outside), experts=count)
    yield Tensor(f"{p}ssm_conv1d.weight", (d.conv, d.conv_width), keep=True)
    yield Tensor(f"{p}ssm_dt.bias", (d.value_heads,), "zeros")
    yield Tensor(f"{p}ssm_a", (d.value_heads,), "minus")
    yield _ones(p + "ssm_norm", d.head_dim)


def _dense(p: str, hidden: int, width: int, count: int) -> Iterator[Tensor]:
    yield Tensor(p + "ffn_gate.weight", (hidden, width), experts=count)
    yield Tensor(p + "ffn_up.weight", (hidden, width), experts=count)
    yield Tensor(p + "ffn_down.weight", (width, hidden), experts=count)


def _experts(p: str, hidden: int, e: Experts) -> Iterator[Tensor]:
    yield Tensor(p + "ffn_gate_inp.weight", (hidden, e.count), keep=True)
    if e.bias:
        yield Tensor(p + "ffn_gate_inp.bias", (e.count,), "zeros")
    for name, inside, outside in (("gate", hidden, e.width), ("up", hidden, e.width), ("down", e.width, hidden)):
        yield Tensor(f"{p}ffn_{name}_exps.weight", (inside, outside, e.count), experts=e.count)
        if e.bias:
            yield Tensor(f"{p}ffn_{name}_exps.bias", (outside, e.count), "zeros")
    if e.shared:
        yield Tensor(p + "ffn_gate_inp_shexp.weight", (hidden,), "zeros")
        for name, inside, outside in (("gate", hidden, e.shared), ("up", hidden, e.shared), ("down", e.shared, hidden)):
            yield Tensor(f"{p}ffn_{name}_shexp.weight", (inside, outside), experts=e.count)


def drafter_tensors(drafter: Drafter) -> list[Tensor]:
    """All tensors of the drafter. Embeddings and head are the target's, so they are not in the file."""
    d = drafter
    tensors = [
        Tensor("fc.weight", (d.hidden * len(d.taps), d.hidden)),
        _ones("enc.output_norm", d.hidden),
        _ones("output_norm", d.hidden),
    ]
    for i in range(d.layers):
        p = f"blk.{i}."
        tensors += [_ones(p + "attn_norm", d.hidden), _ones(p + "ffn_norm", d.hidden)]
        tensors += [*_attention(p, d.hidden, d.attention, 0), *_dense(p, d.hidden, d.feed_forward, 0)]
    return tensors


def _ones(name: str, width: int) -> Tensor:
    return Tensor(name + ".weight", (width,), "ones")


def target_keys(shape: Shape) -> dict[str, object]:
    """The keys of the target's header without the tokenizer: Python int, float, str, or list of int or bool."""
    a = shape.attention
    keys: dict[str, object] = {
        **_common(shape.layers, shape.hidden, shape.feed_forward, a),
        "context_length": shape.context,
        "vocab_size": shape.vocab,
        "rope.freq_base": shape.rope_base,
    }
    if d := shape.delta:
        rope = a.head_dim // 4
        first = -(-rope // 6)
        second = -(-(rope // 2 - first) // 2)
        keys |= {
            "ssm.conv_kernel": d.conv,
            "ssm.inner_size": d.value_width,
            "ssm.state_size": d.head_dim,
            "ssm.time_step_rank": d.value_heads,
            "ssm.group_count": d.key_heads,
            "full_attention_interval": d.interval,
            "rope.dimension_count": rope,
            "rope.dimension_sections": [first, second, rope // 2 - first - second, 0],
        }
    if e := shape.experts:
        keys |= {"expert_count": e.count, "expert_used_count": e.used, "expert_feed_forward_length": e.width}
        if e.shared:
            keys["expert_shared_feed_forward_length"] = e.shared
    if a.window:
        keys["attention.sliding_window"] = a.window
    return {f"{shape.arch}.{key}": value for key, value in {**keys, **shape.extra}.items()}


def drafter_keys(shape: Shape) -> dict[str, object]:
    """The keys of the drafter's header without the tokenizer. Taps are written as inputs of layers: HF id + 1."""
    d = shape.drafter
    keys: dict[str, object] = {
        **_common(d.layers, d.hidden, d.feed_forward, d.attention),
        "context_length": shape.context,
        "vocab_size": shape.vocab,
        "rope.freq_base": shape.rope_base,
        "block_size": d.block,
        "target_layers": [tap + 1 for tap in d.taps],
    }
    if shape.delta:  # a target with M-RoPE
        keys["rope.dimension_sections"] = [d.attention.head_dim // 2, 0, 0, 0]
    if d.window:
        keys["attention.sliding_window"] = d.window
        keys["attention.sliding_window_pattern"] = [i < d.windowed_layers for i in range(d.layers)]
    return {f"dflash.{key}": value for key, value in keys.items()}


def _common(layers: int, hidden: int, feed_forward: int, a: Attention) -> dict[str, object]:
    return {
        "block_count": layers,
        "embedding_length": hidden,
        "feed_forward_length": feed_forward,
        "attention.head_count": a.heads,
        "attention.head_count_kv": a.kv_heads,
        "attention.key_length": a.head_dim,
        "attention.value_length": a.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }
