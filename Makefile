# Every target sets up what it needs by itself: a virtual environment in .venv, without TensorFlow.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup fit test test-matrix test-install sizes requirements lint check check-slow fuzz bench bench-mkl docs docs-serve clean

help:
	@echo "make setup | fit | test | test-matrix | test-install | sizes | requirements | lint | check | check-slow | fuzz | bench | bench-mkl | docs | docs-serve | clean"

setup: $(READY)

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "nftk_jax needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version`. Say make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode --editable '.[dev]'
	@touch $(READY)

fit: $(READY)
	$(BIN)/python -m nftk_jax.fit

test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

# The oldest and the newest Python and JAX, in an environment of their own; uv fetches an interpreter that is missing.
test-matrix: $(READY)
	@for versions in "3.11 jax==0.6.1 jaxlib==0.6.1" "3.13 jax jaxlib"; do set -- $$versions; \
	  $(BIN)/uv venv --quiet --clear --python $$1 .venv-matrix && \
	  VIRTUAL_ENV=.venv-matrix $(BIN)/uv pip install --quiet --editable '.[dev]' $$2 $$3 && \
	  .venv-matrix/bin/python -c 'import jax, platform; print("Python", platform.python_version(), "JAX", jax.__version__)' && \
	  .venv-matrix/bin/python -m pytest --numprocesses auto --dist loadfile $(PYTEST) || exit 1; \
	done

# pip alone, in an empty environment, without TensorFlow: as docs/library.md says.
test-install:
	@rm -rf .venv-install build && $(PYTHON) -m venv .venv-install
	@.venv-install/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt
	@.venv-install/bin/python -m pip install --quiet --disable-pip-version-check --no-deps .
	@cd .venv-install && bin/nftk fit --depth 2 --n-train 200 --n-test 200 --baselines none --output result && \
	  ! bin/python -c 'import tensorflow' 2>/dev/null && test -s result/report.html && du -sh . --exclude=result

# What the three ways of installing take on disk, as README says.
sizes: $(READY)
	@for how in "uv:." "uv, with TensorFlow:--no-config ." "uv, with numba:.[numba]"; do \
	  $(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-sizes && \
	  VIRTUAL_ENV=.venv-sizes $(BIN)/uv pip install --quiet --link-mode copy $${how#*:} && \
	  du -sm .venv-sizes | sed "s/\t.*/ MB: $${how%%:*}/" || exit 1; \
	done
	@rm -rf .venv-sizes

# The pins of requirements.txt: what `make setup` would install, without the tools of development. Those of
# experiments/requirements.txt are the versions of this environment.
requirements: $(READY)
	@{ echo "# Everything that nftk_jax needs, pinned, without TensorFlow, which neural-tangents lists and nftk_jax never uses:"; \
	  echo "#   pip install --no-deps -r requirements.txt && pip install --no-deps ."; \
	  echo "# Written by \`make requirements\`."; \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header pyproject.toml \
	    | grep -v "'never'"; } > requirements.txt
	@{ echo "# The versions with which the results in experiments/results were computed last, on Python 3.11:"; \
	  echo "#   pip install --no-deps -r experiments/requirements.txt && pip install --no-deps ."; \
	  echo "# Written by \`make requirements\`."; \
	  VIRTUAL_ENV=.venv $(BIN)/uv pip freeze --exclude-editable | $(BIN)/uv pip compile --quiet --python-version 3.11 \
	    --extra text --constraint - --no-annotate --no-header setup.cfg | grep -v "'never'"; } > experiments/requirements.txt

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

check: lint test

check-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# Every reader of other programs' files on so many changed ones.
RUNS ?= 20000
fuzz: $(READY)
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet atheris
	@for reader in npz csv idx tar tokens weights header; do $(BIN)/python benchmarks/fuzz.py $$reader -runs=$(RUNS) || exit 1; done

bench: $(READY)
	$(BIN)/python benchmarks/kernels.py

# The peers live in an environment of their own, so that nothing here depends on them; JSON on standard output.
bench-mkl: $(READY)
	@test -x .venv-bench/bin/python || $(BIN)/python -m venv .venv-bench
	@VIRTUAL_ENV=.venv-bench $(BIN)/uv pip install --quiet --editable . himalaya MKLpy torch matplotlib 1>&2
	@.venv-bench/bin/python benchmarks/mkl.py $(BENCH_MKL)

docs: $(READY)
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --editable '.[dev,docs]'
	@mkdir -p .venv/ipython/profile_default
	@echo "c.IPKernelApp.log_level = 40  # no word about TCP between a notebook and its own kernel" > .venv/ipython/profile_default/ipython_kernel_config.py
	@IPYTHONDIR=$(CURDIR)/.venv/ipython NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# site/index.html opens from disk too
docs-serve: docs
	@echo "the documentation is at http://localhost:8000; Ctrl-C ends it"
	@$(BIN)/python -m http.server --directory site --bind 127.0.0.1 8000

clean:
	rm -rf .venv .venv-bench .venv-matrix .venv-install .venv-sizes build dist *.egg-info runs site
