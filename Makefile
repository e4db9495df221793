# Every command a person or CI needs. `make run` and `make test` set up `.venv` by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PORT ?= 8765
NAMESPACE ?= default
DATA_DIR ?=

.PHONY: run test check test-conformance bench clean

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[local,dev]'
	@touch $(STAMP)

run: $(STAMP)
	$(BIN)/redis-memory serve --port $(PORT) --namespace $(NAMESPACE) $(if $(DATA_DIR),--data-dir $(DATA_DIR))

test: $(STAMP)
	$(BIN)/python -m pytest

# The official MCP conformance suite; Node comes with a Python package.
CONFORMANCE := $(VENV)/.conformance

$(CONFORMANCE): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[local,dev,conformance]'
	@touch $(CONFORMANCE)

test-conformance: $(CONFORMANCE)
	$(BIN)/python tests/conformance/run.py

# Quality and speed against floors and peers; needs evaluation data (see benchmarks/README.md).
bench: $(STAMP)
	$(BIN)/python -m benchmarks.retrieval locomo realtalk cranfield beam100k
	$(BIN)/python -m benchmarks.startup

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

clean:
	rm -rf $(VENV) tests/conformance/node_modules
