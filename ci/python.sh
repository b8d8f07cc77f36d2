#!/usr/bin/env bash
# Lane "python": style, the patch series, converter, tools. Needs no build of llama.cpp.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python tests/family_table.py --check & table=$!  # one core does for each
.venv/bin/ruff check .
.venv/bin/build-fork validate
wait "$table"
.venv/bin/python -m pytest -q -n 2 --dist loadfile tests/convert tests/build tests/models tests/real
