# `make` lists the targets. Everything is installed into .venv; nothing outside this directory changes.

PYTHON ?= python3
PORT ?= 8080
EXAMPLES ?= 500
SEED ?=
BIN := .venv/bin
SETUP := .venv/.setup

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test fuzz fuzz-http chaos fmt lint check bench oracle docs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(SETUP) ## create .venv and install what development needs

# The stamp makes a second run free; a change of the dependencies makes it stale. geffnet, of the EfficientNet example,
# asks for torchvision, which it does not use and whose builds do not load beside every build of PyTorch.
$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Mariner needs Python 3.11 or newer, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make setup PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { \
	  echo "$(PYTHON) could not create .venv. On Debian and Ubuntu the module comes with: apt install python3-venv"; \
	  rm -rf .venv; exit 1; }
	@echo "Installing into .venv; a first run downloads PyTorch and takes minutes."
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps geffnet
	@touch $@

demo: $(SETUP) ## train a digit classifier, package it, serve it, query it, stop (PORT=8080)
	@$(BIN)/python examples/digits/demo.py --port $(PORT)

serve: $(SETUP) ## the same, but leave the server running (PORT=8080)
	@$(BIN)/python examples/digits/demo.py --port $(PORT) --keep

test: $(SETUP) ## run the whole test suite
	$(BIN)/python -m pytest

fuzz: $(SETUP) ## ask a real server what nobody would, for minutes (EXAMPLES=500 per operation)
	MARINER_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/fuzz

fuzz-http: $(SETUP) ## 200,000 malformed, split and half-closed HTTP inputs against the server
	PYTHONPATH=tests $(BIN)/python tests/fuzz/http_fuzzer.py

chaos: $(SETUP) ## break a real server in 10,000 random steps, for 5 minutes (SEED= of an earlier run repeats it)
	PYTHONPATH=tests:tests/integration:benchmarks $(BIN)/python tests/chaos/chaos.py $(SEED:%=--seed %)

fmt: $(SETUP) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(SETUP) ## style, types, import contracts, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --allow-subclassing-any $(wildcard examples/digits/*.py)
	$(BIN)/lint-imports
	$(BIN)/codespell

check: lint test ## everything a change has to pass

bench: $(SETUP) ## measure against other servers on this machine (takes long)
	$(BIN)/python benchmarks/bench.py

# PYTHONPATH: the suite, and the benchmark's way of installing TorchServe and starting servers
ORACLE := PYTHONPATH=tests/compat:benchmarks $(BIN)/python -m oracle

oracle: $(SETUP) ## ask the real TorchServe again what it answers (needs Java 17; SCENARIOS="...")
	$(ORACLE) record $(SCENARIOS)

docs: $(SETUP) ## regenerate the reference pages that come from the code
	@mkdir -p build
	$(BIN)/mariner config docs > build/configuration.md.new
	mv build/configuration.md.new docs/reference/configuration.md
	$(BIN)/mariner config docs --model > build/model-config.md.new
	mv build/model-config.md.new docs/reference/model-config.md
	$(BIN)/mariner metrics docs > build/metrics.md.new
	mv build/metrics.md.new docs/reference/metrics.md
	$(ORACLE) page > build/compatibility.md.new
	mv build/compatibility.md.new docs/reference/compatibility.md
