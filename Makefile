# make setup      the virtual environment and the pinned packages
# make pretrain   from nothing to a pretrained BERT in runs/demo, about ten minutes on two cores
# make test       all tests
# make lint       ruff and mypy
# make docs       the documentation site in site/; a broken link is an error
PYTHON ?= python3
BIN := .venv/bin
# Tests start processes of their own, and a worker takes up to 2 GB.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(4, max(2, os.cpu_count() or 1)))')

.PHONY: setup pretrain test lint docs format clean

setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	$(PYTHON) scripts/check_python.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing torch, then the other pinned packages (two to five minutes)"
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

pretrain: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo.sh

test: setup
	OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache
