# make search   set up, then search the model that ships with mpq (no network after the set-up)
# make test     the whole test suite
# make lint types format clean
#
# Variables:
#   PYTHON=python3.12          the interpreter the environment is made with (3.11 or newer)
#   TORCH="torch==2.13.0 …"    what pip is asked for torch; on Linux a plain torch is the CUDA
#                              build, several GB: README.md says how to get the CPU build
#   JOBS=2                     processes that `make test` runs in
#   CONFIG=…  SEARCH_FLAGS=…   what `make search` searches, and further flags for mpq-search

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch
JOBS   ?= 2
CONFIG ?= search_configs/tiny_llama.toml
SEARCH_FLAGS ?=

BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
SOURCES := mpq tests experiments benchmarks

.PHONY: search test lint types format clean
.DEFAULT_GOAL := search

search: $(VENV)/.installed
	$(BIN)/mpq-search $(CONFIG) $(SEARCH_FLAGS)

# One thread a process: several processes that each start a thread per core only hinder each other.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(VENV)/.installed-dev
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find mpq tests experiments benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make the set-up run once, and again when what it reads changes. torch comes first and
# by itself, so that a build chosen with TORCH= is the one that mpq finds.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mpq needs Python 3.11 or newer; choose one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) $(TORCH)
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@
