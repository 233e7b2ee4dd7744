# The commands of the project. `make demo` is the first to try: nothing but Python 3.11 is needed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo install test test-fast check clean

demo: install
	$(BIN)/python -m rl_experiments

install: .venv/installed

.venv/installed: pyproject.toml requirements.lock requirements-dev.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint requirements.lock --constraint requirements-dev.lock --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps bfcl-eval==2026.3.23
	touch $@

test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-fast: install
	$(BIN)/python -m pytest --numprocesses 2 -m "not slow"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
