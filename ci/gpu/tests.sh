#!/usr/bin/env bash
# Correctness on a GPU: build the fork with CUDA for the GPU that is here, then everything that lane fork-cpu runs, on it.
# Words after the script's name go to build-fork, e.g. --source .fork/pinned.git.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
export PYTHONPATH=convert:tools${PYTHONPATH:+:$PYTHONPATH}

"$python" -m dflash_tools.fork.cli build --backend cuda --cuda-arch native --tests "$@"
for op in MUL_MAT FLASH_ATTN_EXT GATED_DELTA_NET SSM_CONV SET_ROWS TOP_K ARGMAX; do
    .fork/bin/test-backend-ops test -o "$op" | tail -n 3
done
# The tests compare in float32, which cuBLAS would otherwise round to TF32.
NVIDIA_TF32_OVERRIDE=0 "$python" -m pytest -q tests/parity tests/server
