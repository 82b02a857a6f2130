# Every target sets up what it needs by itself: a virtual environment in .venv, without TensorFlow.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup fit test lint check check-slow bench docs clean

help:
	@echo "make setup | fit | test | lint | check | check-slow | bench | docs | clean"

setup: $(READY)

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "nftk_jax needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version`. Say make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --editable '.[dev]'
	@touch $(READY)

fit: $(READY)
	$(BIN)/python -m nftk_jax.fit

test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

check: lint test

check-slow: $(READY)
	$(BIN)/python -m pytest -m slow

bench: $(READY)
	$(BIN)/python benchmarks/kernels.py

docs: $(READY)
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --editable '.[dev,docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv build dist *.egg-info runs site
