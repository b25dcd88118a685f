# Needs GNU make, a POSIX sh and Python >= 3.10 with venv and pip; everything else goes into .venv.
# `make` alone says what there is to make.

VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
DIST ?= dist
JOBS ?= 6
UV ?=

# The first Python >= 3.10 that really runs and can make environments. Override: make test PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3 python3.15 python3.14 python3.13 python3.12 python3.11 python3.10 python; do \
    $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 \
    && { echo $$p; break; }; done)

# Debian packages that the integration tests need, unless their programs are there already.
missing = $(shell PATH="$$PATH:/usr/sbin:/sbin"; for p in $(1); do command -v $$p >/dev/null || { echo $(2); break; }; done)
absent = $(if $(wildcard /usr/share/gocode/src/$(1)/websocket),,$(2))
INTEGRATION_PACKAGES := $(call missing,node npm,nodejs npm) $(call missing,nginx,nginx) \
    $(call missing,haproxy,haproxy) $(call missing,prometheus,prometheus) $(call missing,redis-server,redis-server) $(call missing,ip,iproute2) \
    $(call missing,tinyproxy,tinyproxy-bin) $(call missing,microsocks,microsocks) $(call missing,go,golang-go) \
    $(call missing,aria2c,aria2) $(call missing,chromium-headless-shell,chromium-headless-shell) \
    $(call absent,nhooyr.io,golang-nhooyr-websocket-dev) \
    $(call absent,github.com/gorilla,golang-github-gorilla-websocket-dev)

# And from npm, into the environment.
NPM_PACKAGES := ws@8 graphql@16 graphql-ws@6 @foundry-rs/anvil@1 axe-core@4 pyright@1

# Settings of the user's that would make pip install elsewhere than into .venv, or Python look elsewhere.
unexport PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PYTHONHOME PYTHONPATH

# Some hundred Pythons are started by the tests, and each would compile everything it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format docs coverage bench integration release soak clean

help: ## Say what there is to make
	@echo "make TARGET [PYTHON=python3.12] [ARGS='-k name -x']"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' Makefile | while IFS='|' read -r name text; do \
	    printf '%-14s %s\n' "$$name" "$$text"; done

demo: $(VENV)/.has-demo ## Share 8 connections among 32 threads, before your eyes
	@$(BIN)/python -m jetsocket demo $(ARGS)

test: $(VENV)/.has-test ## Run the tests, JOBS=6 at a time: they wait more than they compute
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(VENV)/.has-lint ## Check style, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: $(VENV)/.has-lint ## Put the code into the style that lint checks
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(VENV)/.has-docs ## Build the documentation into docs/_build/html
	@$(BIN)/python -m sphinx -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

coverage: $(VENV)/.has-test ## Run the tests and show what they leave out; under 95 % fails
	@$(BIN)/python -m coverage erase
	@$(BIN)/python -m coverage run -m pytest -m "not integration and not soak" $(ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

bench: $(VENV)/.has-bench ## Measure, beside other libraries
	@$(BIN)/python -m tests.benchmarks $(ARGS)

integration: $(VENV)/.has-integration ## Run the tests that need more than Python packages
	@if [ -n "$(strip $(INTEGRATION_PACKAGES))" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && apt-get install -y -q --no-install-recommends $$(for p in $(INTEGRATION_PACKAGES); do \
	        if apt-cache show $$p >/dev/null 2>&1; then echo $$p; else echo "There is no $$p here" >&2; fi; done); fi
	@if command -v npm >/dev/null && ! echo $(NPM_PACKAGES) | cmp -s - $(VENV)/npm/installed; then \
	    mkdir -p $(VENV)/npm && npm install --no-audit --no-fund --loglevel=error --prefix $(VENV)/npm $(NPM_PACKAGES) \
	    && echo $(NPM_PACKAGES) >$(VENV)/npm/installed || echo "npm has failed; what needs it is skipped" >&2; fi
	@$(BIN)/python -m pytest -m "integration and not soak" $(ARGS)

release: $(VENV)/.has-release ## Build wheel and sdist into dist, and check them; tags and uploads nothing
	@rm -f $(DIST)/*.whl $(DIST)/*.tar.gz
	@$(BIN)/python -m build --outdir $(DIST)
	@$(BIN)/python -m twine check --strict $(DIST)/*
	@$(BIN)/check-wheel-contents $(DIST)
	@$(BIN)/python -m zipfile -l $(DIST)/*.whl | grep 'jetsocket/py\.typed' >/dev/null || \
	    { echo "jetsocket/py.typed is not in the wheel" >&2; exit 1; }

soak: $(VENV)/.has-soak ## Try every promise at length: MINUTES=10 SEED=n ONLY=soak|suites
	@$(BIN)/python -m tests.soak $(ARGS)

clean: ## Remove everything that was made here, .venv too
	@rm -rf $(VENV) docs/_build dist htmlcov .coverage .coverage.* .hypothesis \
	    .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@find jetsocket tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment; a stamp file for each set of extras that is in it. pip installs them, or UV=/path/to/uv, which takes
# a tenth of the time.
$(VENV)/.made:
	@[ -n "$(PYTHON)" ] || { echo "No Python >= 3.10 with venv and ensurepip was found. Install one" \
	    "(Debian: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.has-%: $(VENV)/.made pyproject.toml
	@echo "Installing jetsocket[$*] into $(VENV)"
	@{ [ -n "$(UV)" ] && $(UV) pip install --quiet --python $(BIN)/python -e ".[$*]"; } >$(VENV)/pip-$*.log 2>&1 || \
	    $(BIN)/python -m pip install --disable-pip-version-check --no-input -e ".[$*]" \
	    >>$(VENV)/pip-$*.log 2>&1 || { cat $(VENV)/pip-$*.log >&2; exit 1; }
	@touch $@
