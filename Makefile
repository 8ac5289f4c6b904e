# Everything runs from a virtual environment of its own; `make setup` makes it and what the tests talk to.
# As root on a fresh Debian machine: `make demo` shows the main job, `make test` runs every test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Most tests wait for servers, and for runs that are to wait: three at once keep two cores busy.
AT_ONCE := --numprocesses 3 --dist loadfile

.PHONY: help setup demo test unit integration e2e lint type docs docs-check check soak bench dist clean

setup: $(VENV)/.installed  ## virtual environment and the programs that tests talk to
	@bash tests/support/install-programs.sh

$(VENV)/.installed: pyproject.toml bundler/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "airgap-sync needs Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || sh tests/support/install-venv.sh
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed  ## the main job, with real commands, on this machine
	@bash tests/support/install-programs.sh docker-registry
	@$(BIN)/python -m tests.demo

test: setup  ## every test
	$(PYTEST) $(AT_ONCE)

unit: setup  ## tests without sockets
	$(PYTEST) tests/unit

integration: setup  ## tests against real and scripted registries
	$(PYTEST) $(AT_ONCE) tests/integration

e2e: setup  ## whole releases, with containerd and skopeo
	$(PYTEST) tests/e2e

lint: setup  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup  ## mypy, strict
	$(BIN)/mypy

docs: setup  ## write the generated parts of README.md and docs/
	$(BIN)/python -m tests.support.docs --write

docs-check: setup  ## are the generated parts of the documentation up to date?
	$(BIN)/python -m tests.support.docs

check: lint type docs-check test  ## what continuous integration runs

bench: setup  ## time and memory against skopeo; prints, judges nothing
	@$(BIN)/python -m tests.bench

soak: setup  ## the long runs: hundreds of kills, gigabyte layers, guided fuzzing
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[soak]'
	@$(BIN)/python -m tests.soak

dist:
	@echo "make dist has no content yet: the single file that crosses the gap is still to come" >&2; exit 1

clean:  ## remove what was made here
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis dist

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/  /'
