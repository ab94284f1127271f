# Works on a machine with git, make and Python 3.11 or newer; the rest is installed into .venv.
PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=

BIN := .venv/bin
READY := .venv/.ready
INSTALL := $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check lint docs dist bench format clean

help:  ## say what the targets do
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY)  ## train through a structure of ten lines
	$(BIN)/python examples/pixels.py

test: $(READY)  ## run the tests on all cores; PYTEST_ARGS="-k tree -n 0" is handed on
	$(BIN)/python -m pytest -n auto $(PYTEST_ARGS)

check: $(READY)  ## every structure x verb x road: worst error and certificate, as one table
	$(BIN)/python -m spigot.testing tests.structures:STRUCTURES

lint: $(READY)  ## style, types, and that every public name has a type
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=src pyright --verifytypes spigot --ignoreexternal

docs: $(READY)  ## the documentation's site, in out/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

dist: $(READY)  ## wheel and sdist in out/dist, and the wheel tried in an empty environment
	rm -rf out/dist
	$(BIN)/python -m build --quiet --no-isolation --outdir out/dist
	$(PYTHON) -m venv --clear out/dist/env
	out/dist/env/bin/pip install -qq --disable-pip-version-check -c constraints.txt out/dist/*.whl
	cd out/dist && env/bin/python -P -m spigot.testing --count 2 --brief

bench: .venv-bench/.ready  ## every workload against every peer, an hour; BENCH_ARGS="--only sparsemax"
	.venv-bench/bin/python -m benchmarks $(BENCH_ARGS)

format: $(READY)  ## format the code and mend what ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove what builds and tests leave behind; .venv stays
	rm -rf build dist out *.egg-info .cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first: the other packages then find it in place.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.x")'
	$(PYTHON) -m venv .venv
	@echo "installing into .venv, which takes minutes"
	$(INSTALL) torch
	$(INSTALL) -e ".[examples,dev,docs]"
	@touch $@

# The peers, apart from what the tests run on. torchsort compiles against the torch that is there, and
# for a GPU where it finds nvcc; qpth needs an older numpy than spigot.
BENCH_INSTALL := .venv-bench/bin/pip install -qq --disable-pip-version-check -c constraints.txt
.venv-bench/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	@echo "installing into .venv-bench, which takes minutes"
	$(BENCH_INSTALL) torch setuptools wheel numpy
	$(BENCH_INSTALL) -e ".[examples,bench]"
	-PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/bin $(BENCH_INSTALL) --no-build-isolation torchsort
	-$(BENCH_INSTALL) lp-sparsemap
	$(PYTHON) -m venv .venv-bench/qpth
	.venv-bench/qpth/bin/pip install -qq --disable-pip-version-check torch==2.13.0
	.venv-bench/qpth/bin/pip install -qq --disable-pip-version-check "numpy<2" qpth
	@touch $@
