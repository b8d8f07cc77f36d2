"""The memory floor against numbers worked out by hand."""

from __future__ import annotations

import pytest
from dflash_tools.bench.floor import Load, floor_ms, prefill_bytes, round_bytes, target_bytes
from dflash_tools.bench.shapes import SHAPES
from dflash_tools.bench.synth import drafter_model, target_model
from dflash_tools.errors import UserError

MIB = 1 << 20
HYBRID, DENSE = SHAPES["qwen3.5-27b"], SHAPES["qwen3-8b"]


def of(shape, **load):
    return target_bytes(shape, target_model(shape, shape.mix), Load(**load))


def test_a_step_reads_all_weights_but_the_embedding():
    model = target_model(DENSE, "q4_k_m")
    assert of(DENSE) == model.weights - 4096 * 151936 * 144 / 256
    tied = SHAPES["qwen3-4b"]
    assert of(tied) == target_model(tied, "q4_k_m").weights, "the embedding is the head"


def test_rows_of_a_dense_model_cost_nothing_more():
    assert of(DENSE, rows=64) == of(DENSE, rows=1)


def test_context_costs_its_cells():
    # 36 layers, K and V of 8 heads of 128: 144 KiB a token in f16, 34/64 of that in q8_0
    assert of(DENSE, context=1000) - of(DENSE) == 1000 * 36 * 2 * 8 * 128 * 2
    assert of(DENSE, context=1000, kv="q8_0") - of(DENSE) == pytest.approx(1000 * 36 * 2 * 8 * 128 * 34 / 32)
    # 16 of 64 layers attend: 64 KiB a token
    assert of(HYBRID, context=1) - of(HYBRID) == 64 * 1024


def test_states_of_a_hybrid_are_read_and_written_once_per_slot():
    # one plane is 149.6 MiB: 48 layers of 48 heads of 128 x 128, and three rows of 10240 of the convolution
    assert (of(HYBRID, slots=2) - of(HYBRID, slots=1)) / MIB == pytest.approx(2 * 149.625, abs=0.001)


def test_rows_that_choose_experts_read_more_of_them():
    moe = SHAPES["qwen3.5-35b-a3b"]
    experts = 40 * 256 * 3 * 512 * 2048
    q4 = experts * 144 / 256  # at least; some are in six bits
    one, two = of(moe, rows=1), of(moe, rows=2)
    assert one < 2.7e9, "3 B of the 35 B weights are read"
    assert two - one == pytest.approx(q4 * 8 / 256 * (1 - 8 / 256), rel=0.2)
    assert of(moe, rows=10_000) <= target_model(moe, moe.mix).weights + 2 * 62 * MIB


def test_a_window_bounds_the_cells_that_are_read():
    oss = SHAPES["gpt-oss-20b"]
    cell = 2 * 8 * 64 * 2
    assert of(oss, context=4096) - of(oss) == 12 * cell * 4096 + 12 * cell * 128


def test_a_round_adds_the_drafter_and_the_head_once_more():
    target, drafter = target_model(HYBRID, "q4_k_m"), drafter_model(HYBRID, "q8_0")
    extra = round_bytes(HYBRID, target, drafter, Load(16)) - target_bytes(HYBRID, target, Load(16))
    assert extra == drafter.weights + 5120 * 248320 * 210 / 256
    windowed = SHAPES["qwen3.6-27b"]
    deep = round_bytes(windowed, target, drafter, Load(16, 8192)) - target_bytes(windowed, target, Load(16, 8192))
    assert deep - extra == (4 * 2048 + 8192) * 2 * 8 * 128 * 2


def test_a_prompt_reads_the_weights_once_per_micro_batch_and_the_head_once():
    target = target_model(DENSE, "q4_k_m")
    head = target.bytes_of("output.weight")
    whole = prefill_bytes(DENSE, target, None, Load(context=1024), 512)
    assert whole == 2 * of(DENSE) - head + 512 * 36 * 2 * 8 * 128 * 2, "the second reads the cells of the first"
    drafter = drafter_model(DENSE, "q8_0")
    inject = prefill_bytes(DENSE, target, drafter, Load(context=1024), 512) - whole
    assert inject == 2 * (5 * 4096 * 4096 + 5 * 2 * 4096 * 1024) * 34 / 32, "fc, and keys and values of five layers"


def test_bytes_over_bandwidth():
    assert floor_ms(3e9, 3000) == pytest.approx(1.0)


def test_unknown_type_of_cells_is_refused():
    with pytest.raises(UserError, match="'q9' is no type"):
        of(DENSE, context=1, kv="q9")
