# Everything a newcomer needs: `make demo` shows the main job, `make test` runs all checks.
# Both make .venv first. Another Python: make PYTHON=python3.13 test

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A venv apart, for `make newest`, and what it tests: the engine and the rooms above it.
NEWEST ?= .venv-newest
CORE := jprune/jaxprs.py jprune/forms jprune/graph jprune/blocks jprune/cost jprune/criteria \
	jprune/allocate jprune/masks jprune/units.py tests/graph tests/forms tests/blocks \
	tests/criteria tests/allocate tests/sparsify
# The constraints are for Python 3.11 only; newer Pythons take the newest versions.
CONSTRAINTS := $(shell $(PYTHON) -c 'import sys; print("-c .ci/constraints-py311.txt" if sys.version_info[:2] == (3, 11) else "")')
WORKERS ?= 2
# Compiled functions are kept between runs of the tests, which then mostly test and not compile.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/$(VENV)/jax-cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.2
# Workers share the cores already: threads of NumPy's small matrices would wait for each other.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: demo test install lint types doctests tests notebooks tables laws fuzz bench kills flips zoos \
	newest docs build release-check clean

demo: install
	$(BIN)/jprune prune --model resnet8 --data digits --method taylor --macs 0.5 --seed 0 --out runs/demo

test: install lint types tests

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml .ci/constraints-py311.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[tflite,sparse,docs,dev]'
	touch $@

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# The project is named, or a pyrightconfig.json in a folder above would go before it.
types: install
	$(BIN)/pyright --project pyproject.toml

# Doctests are collected with the tests (pyproject.toml), notebooks run in smoke mode. A function of
# a test runs a few times and compiles long: with few of LLVM's optimisations, and without XLA's newer
# emitters of loops, a recipe compiles in a third of the time. Level 0 halves that again, and makes
# convolutions in loops ten times slower.
tests: export XLA_FLAGS ?= --xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false
tests: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Makes the notebooks from their sources; a test compares the two.
notebooks: install
	$(BIN)/jupytext --to ipynb colab/*.py

# Makes every table and figure from the measured rows; a test compares.
tables: install
	$(BIN)/python -m experiments.tables

laws: install
	JPRUNE_DRAWS=500 $(BIN)/python -m pytest tests/graph/test_random_nets.py

# An hour of damaged files for every reader (tests/foreign).
fuzz: install
	JPRUNE_FUZZ=$(or $(JPRUNE_FUZZ),15000) $(BIN)/python -m pytest tests/foreign/test_fuzz.py

# On a machine that does nothing else. The other side of `trace` is a Python with torch, torchvision
# and torch-pruning: make bench JPRUNE_BENCH_PYTHON=...
bench: install
	for part in trace linear compile multiples depthwise latency hold \
			hutchinson topk obs dns sparse steps metapruning kfac runner; do \
		KERAS_BACKEND=jax $(BIN)/python -m experiments.benchmarks.$$part || exit 1; \
	done

# A hundred kills of runs of every stage kind, five hundred flipped bits (docs/trust.md): an hour each.
kills: install
	$(BIN)/python -m experiments.trust.kills --count 100

flips: install
	$(BIN)/python -m experiments.trust.flips --count 500

# All classifiers of keras.applications, a process each: a quarter of an hour.
zoos: install
	KERAS_BACKEND=jax $(BIN)/python -m experiments.zoos

# The core tests on the newest JAX that a Python gets: make newest PYTHON=python3.13 (or a path).
newest:
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -e '.[dev]'
	$(NEWEST)/bin/python -c 'import sys, jax; print("Python", sys.version, "JAX", jax.__version__)'
	JAX_COMPILATION_CACHE_DIR=$(CURDIR)/$(NEWEST)/jax-cache \
		$(NEWEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(CORE)

# The site, in site/: from docs/, the README and docstrings. A warning or a broken link fails.
docs: install
	$(BIN)/python -m mkdocs build --strict --quiet

build: install
	$(BIN)/python -m build

# Before a release: builds, checks the metadata, installs into an empty environment, runs the README.
release-check: install
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m experiments.release dist

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
