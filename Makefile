# Thin: every line is a command a person could type. `make demo` shows the product, `make test` is what CI runs.

PYTHON ?= python3
BIN    := .venv/bin
# the real pair that `make real` checks; its target comes from the package index
REAL_DRAFTER ?= ../shared/data/smollm2-135m-dflash

.PHONY: demo test lint real clean

demo: .venv/torch
	$(BIN)/build-fork
	$(BIN)/python -m dflash_tools.demo

test: .venv/test
	ci/python.sh
	ci/fork-cpu.sh

lint: .venv/test
	$(BIN)/ruff check .

real: .venv/test
	$(BIN)/build-fork
	$(BIN)/python -m dflash_tools.real --drafter $(REAL_DRAFTER)

clean:
	rm -rf .venv .fork .demo .real .bench bench-results

# one environment, grown by extras: torch (convert a whole target), test (all of it)
.venv/%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	# the reference drafter of the tests; its own requirements are for training
	test $* != test || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps dflash==0.1.0
	touch $@
