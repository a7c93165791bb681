# Every target makes its own environment in .venv: nothing is needed but make and Python 3.11 or later.
# Arguments go through ARGS: make demo ARGS="--seconds 20", make test ARGS="-k position -x".

.DEFAULT_GOAL := help
.PHONY: help demo test test-capture test-faults test-long fuzz lint format bench bench-bootstrap bench-capture bench-consumers bench-debezium bench-growth bench-kafka bench-latency bench-memory bench-opensearch bench-peers bench-relay wheel clean

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
ARGS ?=

# Tests wait more than they compute. Each worker has servers of its own; `WORKERS=0` runs in one process, as --pdb wants it.
WORKERS ?= 3
PYTEST = $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

help:
	@echo "make demo         everything on an embedded PostgreSQL with a live workload, compared at the end"
	@echo "make test         unit, contract and integration tests on real servers"
	@echo "make test-capture tests of capture and of values alone (ARGS=--pg=all: on PostgreSQL 14 to 18)"
	@echo "make test-long    what takes minutes each, and is left out of make test"
	@echo "make test-faults  kills, torn files and cut connections; prints its seed"
	@echo "make fuzz         crafted pgoutput messages for minutes (ARGS=\"--minutes 5\")"
	@echo "make lint         ruff, mypy, import rules"
	@echo "make format       ruff's formatter and safe fixes"
	@echo "make bench        capture, latency and memory, each as a ratio to its reference"
	@echo "make bench-relay  the log and its server alone, each as a ratio to its reference"
	@echo "make bench-consumers  the client library and the sinks, each as a ratio to its reference"
	@echo "make bench-bootstrap  seeding, applying and serving, each as a ratio to its reference"
	@echo "make bench-debezium   capture against Debezium's engine; takes a JDK, and fetches 200 MB of jars"
	@echo "make bench-kafka      the log on Kafka against Kafka's own tools and Debezium; takes a JDK and Maven, and fetches 250 MB"
	@echo "make bench-opensearch the OpenSearch sink against opensearch-py; takes a JDK and Maven, and fetches 70 MB of jars"
	@echo "make bench-peers      a consumer in Python beside a loop over psycopg2, and Walbus beside pgsync; both are fetched, and so are jars"
	@echo "make wheel        sdist and wheel, compared with the tree, installed into a fresh environment"
	@echo "make clean        removes .venv, caches and what was built"

demo: .venv/.demo
	@$(BIN)/walbus demo $(ARGS)

test: .venv/.dev
	@.ci/provide redis-server mvn=maven javac=default-jdk-headless
	@$(PYTEST) -m 'not long' tests/unit tests/contract tests/house tests/integration tests/fuzz $(ARGS)

# What takes minutes each; of tests/faults too, which `make test-faults` runs whole.
test-long: .venv/.dev
	@.ci/provide redis-server strace fusermount3=fuse3 mvn=maven javac=default-jdk-headless
	@$(PYTEST) -m 'long and not exhaustive' tests $(ARGS)

# What depends on PostgreSQL's version; `make test ARGS=--pg=all` runs it too, with all else.
test-capture: .venv/.dev
	@$(PYTEST) -m 'not long' tests/integration/test_capture_*.py tests/integration/test_values_*.py $(ARGS)

test-faults: .venv/.dev
	@.ci/provide redis-server strace fusermount3=fuse3 mvn=maven javac=default-jdk-headless
	@$(PYTEST) tests/faults $(ARGS)

fuzz: .venv/.fuzz
	@$(BIN)/python tests/fuzz/pgoutput.py $(ARGS)

lint: .venv/.dev
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo "make format puts the layout of these right:"; $(BIN)/ruff format --check; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: .venv/.dev
	@$(BIN)/ruff format --quiet
	@$(BIN)/ruff check --fix --quiet

bench: .venv/.dev
	@$(BIN)/python bench/run.py all $(ARGS)

bench-bootstrap bench-capture bench-consumers bench-debezium bench-growth bench-kafka bench-latency bench-memory bench-opensearch bench-peers bench-relay: bench-%: .venv/.dev
	@$(BIN)/python bench/run.py $* $(ARGS)

wheel: .venv/.dev
	@$(BIN)/python .ci/wheel.py $(ARGS)

clean:
	@rm -rf .venv build dist *.egg-info walbus/native/*.c walbus/native/*.so .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .services
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two stamps in one environment: the demo does without the test tools. Both follow pyproject.toml, and the sources of the
# native core, which an editable install compiles.
NATIVE := $(wildcard walbus/native/*.pyx walbus/native/*.pxi)

.venv/.demo: pyproject.toml $(NATIVE) | .venv/bin/python
	@echo "make: installing walbus[demo] into .venv (once)"
	@$(PIP) --editable '.[demo]'
	@touch $@

.venv/.dev: pyproject.toml $(NATIVE) | .venv/bin/python
	@echo "make: installing walbus[dev] into .venv (once)"
	@$(PIP) --editable '.[dev]'
	@touch .venv/.demo $@

.venv/.fuzz: .venv/.dev
	@echo "make: installing walbus[fuzz] into .venv (once)"
	@$(PIP) --editable '.[fuzz]'
	@touch $@

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later on this machine; name one with PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		echo "make: $(PYTHON) comes without ensurepip; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv .venv
