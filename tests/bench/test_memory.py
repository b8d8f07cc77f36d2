"""Memory by part, from logs that llama-server wrote."""

from __future__ import annotations

from dflash_tools.bench.memory import memory_parts, total

# llama-server -lv 4 --fit off with a tiny hybrid pair on the CPU, other lines left out
CPU_LOG = """\
0.00.036.542 I load_tensors:   CPU_Mapped model buffer size =     1.65 MiB
0.00.036.567 I load_tensors:   CPU_REPACK model buffer size =     1.18 MiB
0.00.039.168 I llama_context:        CPU  output buffer size =     0.00 MiB
0.00.039.449 I llama_kv_cache:        CPU KV buffer size =     2.00 MiB
0.00.039.450 I llama_kv_cache: size =    2.00 MiB (  4096 cells,   1 layers,  1/1 seqs), K (f16):    1.00 MiB
0.00.054.585 I llama_memory_recurrent:        CPU RS buffer size =     1.64 MiB
0.00.085.001 I sched_reserve:        CPU compute buffer size =     8.53 MiB
0.00.110.355 I common_speculative_init_result: loading draft model '/models/tiny-dflash.gguf'
0.00.116.623 I load_tensors:   CPU_Mapped model buffer size =     0.73 MiB
0.00.116.782 I llama_context:        CPU  output buffer size =     0.00 MiB
0.00.116.982 I llama_kv_cache:        CPU KV buffer size =     2.00 MiB
0.00.119.440 I sched_reserve:        CPU compute buffer size =     6.00 MiB
0.00.125.569 I sched_reserve:        CPU compute buffer size =     6.02 MiB
0.00.126.614 I srv    load_model: speculative decoding context initialized
0.00.143.691 I srv  llama_server: model loaded
0.00.547.065 I sched_reserve:        CPU compute buffer size =     9.03 MiB
"""

# the same lines as a CUDA build has them, by llama.cpp's format strings
CUDA_LOG = """\
load_tensors:   CPU_Mapped model buffer size =   333.84 MiB
load_tensors:        CUDA0 model buffer size =  4455.34 MiB
load_tensors:        CUDA1 model buffer size =   100.00 MiB
llama_context:  CUDA_Host  output buffer size =     9.27 MiB
llama_kv_cache:      CUDA0 KV buffer size =   576.00 MiB
llama_kv_cache:      CUDA0 KV buffer size =    64.00 MiB
sched_reserve:      CUDA0 compute buffer size =   304.75 MiB
sched_reserve:  CUDA_Host compute buffer size =    16.01 MiB
common_speculative_init_result: loading draft model 'x.gguf'
load_tensors:        CUDA0 model buffer size =  1063.00 MiB
llama_kv_cache:      CUDA0 KV buffer size =    80.00 MiB
sched_reserve:      CUDA0 compute buffer size =   900.00 MiB
srv  llama_server: model loaded
"""
BREAKDOWN = (
    "common_memory_breakdown_print: | memory breakdown [MiB] | total   free    self   model   context   compute"
    "    unaccounted |\n"
    "common_memory_breakdown_print: |   - CUDA0 (H100 80GB HBM3) | 81079 = 70000 + (5336 =  4455 +     576 +     {}) "
    "+        5743 |\n"
)


def sizes(log):
    return {part.name: part.mib for part in memory_parts(log)}


def test_parts_of_target_and_drafter_are_told_apart():
    assert sizes(CPU_LOG) == {
        "target model (host)": 1.65 + 1.18,
        "target output (host)": 0.0,
        "target kv (host)": 2.0,
        "target states (host)": 1.64,
        "target compute (host)": 9.03,
        "drafter model (host)": 0.73,
        "drafter output (host)": 0.0,
        "drafter kv (host)": 2.0,
        "drafter compute (host)": 6.02,
    }


def test_device_pinned_and_host_memory_are_told_apart():
    found = sizes(CUDA_LOG)
    assert found["target model"] == 4455.34 + 100.0, "all devices together"
    assert found["target model (host)"] == 333.84
    assert found["target kv"] == 576.0 + 64.0, "two caches, one with a window"
    assert found["target output (pinned)"] == 9.27
    assert found["target compute (pinned)"] == 16.01
    assert found["drafter compute"] == 900.0
    parts = memory_parts(CUDA_LOG)
    assert total(parts, "pinned") == 9.27 + 16.01
    assert total(parts, "device") == 4455.34 + 100 + 640 + 304.75 + 1063 + 80 + 900


def test_a_buffer_planned_again_belongs_to_whom_the_breakdown_says():
    late = "sched_reserve:      CUDA0 compute buffer size =   950.50 MiB\n"
    found = sizes(CUDA_LOG + late + BREAKDOWN.format(304))
    assert (found["target compute"], found["drafter compute"]) == (304.75, 950.5)
    found = sizes(CUDA_LOG + late + BREAKDOWN.format(950))
    assert (found["target compute"], found["drafter compute"]) == (950.5, 900.0)


def test_a_log_without_buffers_has_no_parts():
    assert memory_parts("srv  llama_server: model loaded\n") == []
