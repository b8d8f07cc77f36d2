#!/usr/bin/env bash
# Lane "fork-cpu": build the fork for the CPU with its tests, run those, then parity, server behaviour, benchmark.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/build-fork build --backend cpu
.venv/bin/build-fork test --backend cpu
.venv/bin/python -m pytest -q -n 2 --dist loadfile tests/parity tests/server tests/bench
