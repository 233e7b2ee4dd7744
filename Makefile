# The commands of the project. `make demo` is the first to try: nothing but Python 3.11 is needed.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2  # processes that run tests, each with about 2 GB of memory
PYTEST = $(BIN)/python -m pytest --numprocesses $(strip $(WORKERS)) --dist worksteal

.PHONY: demo install test test-fast check clean

demo: install
	$(BIN)/python -m rl_experiments

install: .venv/installed

.venv/installed: pyproject.toml requirements.lock requirements-dev.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint requirements.lock --constraint requirements-dev.lock --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps bfcl-eval==2026.3.23
	touch $@

test: install
	$(PYTEST)

# All but the tests that start programs or take more than about half a second.
test-fast: install
	$(PYTEST) -m "not slow"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
