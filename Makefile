# A fresh clone needs Python 3.11 and make; everything else is installed into .venv from constraints.txt.
#   make demo     train a small classifier, analyse it, write the report
#   make test     lint, types, docs, doctests, tests: what CI runs

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# One thread per test process: with JOBS of them the cores are already full.
QUIET_THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
EXPORT := MPLBACKEND=Agg

.PHONY: help setup setup-test demo test lint format types docs doctest pytest \
	labs mutants bench clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -3
	@echo "  other targets: lint format types docs doctest pytest labs mutants bench clean"

# ---- set-up: each stamp is redone only when the packages asked for change -------------------------

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "torchsheaf needs Python 3.11 or newer on the PATH (or: make PYTHON=/path/to/python)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The build backend is pinned too, hence no build isolation.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing torchsheaf and what it runs on into $(VENV) (a few minutes the first time)"
	@$(PIP) hatchling
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "installing what the tests and the docs need into $(VENV)"
	@$(PIP) --no-build-isolation --editable '.[test,docs,labs,zoo]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@echo "installing what the benchmarks compare with into $(VENV)"
	@$(PIP) --no-build-isolation --editable '.[test,zoo,evidence]'
	@touch $@

setup: $(VENV)/.installed
setup-test: $(VENV)/.installed-test

# ---- the job --------------------------------------------------------------------------------------

demo: $(VENV)/.installed
	@$(BIN)/torchsheaf demo

# ---- checks ---------------------------------------------------------------------------------------

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/.installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(VENV)/.installed-test
	$(BIN)/mypy

docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir site

doctest: $(VENV)/.installed-test
	$(QUIET_THREADS) $(EXPORT) $(BIN)/python -m pytest -q --doctest-modules src/torchsheaf

pytest: $(VENV)/.installed-test
	$(QUIET_THREADS) $(EXPORT) $(BIN)/python -m pytest -q -n $(JOBS)

# The suite comes last, so that the closing line of the run is pytest's "N passed".
test: $(VENV)/.installed-test
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory docs
	@$(MAKE) --no-print-directory doctest
	@$(MAKE) --no-print-directory pytest

mutants: $(VENV)/.installed-test
	$(QUIET_THREADS) $(EXPORT) $(BIN)/python tests/mutants.py

labs: $(VENV)/.installed-test
	@shopt -s nullglob; for notebook in labs/*.ipynb; do \
		echo "executing $$notebook"; \
		MPLBACKEND=module://matplotlib_inline.backend_inline $(BIN)/python -m jupyter execute --inplace "$$notebook"; done

QUESTIONS := substitution_cost spectral_gap heat_flow equilibrium training architectures \
	edge_rate diagnosis precision
bench: $(VENV)/.installed-bench
	@for question in $(QUESTIONS); do \
		echo "== $$question"; $(BIN)/python -m benchmarks.$$question || exit 1; done

clean:
	rm -rf $(VENV) site build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
