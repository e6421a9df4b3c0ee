# One interface for people and for CI. TORCH chooses the torch build: make demo TORCH="torch" takes the newest with CUDA.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types study clean

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[eval]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(VENV)/.demo  ## the whole job on the embedded model: build/demo/{results.json,table.md,picture.png}
	$(BIN)/safeswitch demo --out build/demo

test: $(VENV)/.dev  ## lint, types, tests
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks

types: $(VENV)/.dev
	$(BIN)/mypy

study: $(VENV)/.demo  ## three seeds, 300 requests a suite, against the goals: build/study/
	$(BIN)/safeswitch nano study --out build/study

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
