# The two commands of the README are `make demo` and `make test`. Nothing here needs more than Python 3.11+, git and make.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first interpreter on the path that is new enough; `make demo PYTHON=python3.13` decides otherwise.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
AZURITE := azurite@3.35.0
# PyTorch's wheels are chosen by machine, so it is pinned here and not in the lock. UV_TORCH_BACKEND=cpu picks the
# small build on a machine that reaches PyTorch's own index; a folder of wheels named for pip serves uv as well.
TORCH ?= torch==2.13.0
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
export DAGSTER_HOME ?= $(CURDIR)
export PYTHONUNBUFFERED = 1
# Containers like to set it; without compiled files every one of our processes spends another second on Dagster alone.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check ui bench golden docs lock install install-dev clean

help: ## What there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.demo ## Set everything up, train and deploy a sample experiment, ask its endpoint for a prediction
	@$(BIN)/python deploy/local/demo.py

test: $(VENV)/.dev $(VENV)/.torch $(VENV)/.browser $(VENV)/.azurite $(VENV)/.sshd ## Set everything up and pass all tests
	@$(MAKE) --no-print-directory check & checked=$$!
	# Beside it: what the tests import is compiled once here, and not by each worker.
	$(BIN)/python -m pytest -q --collect-only $(PYTEST_ARGS) >/dev/null || true
	wait $$checked
	# Most tests wait more than they compute: four workers leave a quarter of two cores idle, six a twelfth. The long files
	# come first (tests/conftest.py).
	$(BIN)/python -m pytest -n 6 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: $(VENV)/.dev ## Format, lint, types, who imports whom
	@$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ui: $(VENV)/.demo ## The Dagster UI with this code location
	@$(BIN)/dagster dev -w workspace.yaml

bench: $(VENV)/.dev $(VENV)/.torch ## Every benchmark, each beside its peer
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file; done

golden: $(VENV)/.dev ## Regenerate the golden files of generated scripts; look at the diff
	@$(BIN)/python -m tests.golden.regenerate

docs: $(VENV)/.dev ## Regenerate the reference pages
	@$(BIN)/python -m docs.generate

lock: $(VENV)/.uv ## Resolve all dependencies anew
	@set -- --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet
	$(BIN)/uv pip compile pyproject.toml --extra dev "$$@" -o requirements/dev.lock --upgrade
	grep -oE '^[A-Za-z0-9._-]+==[^ ;]+( ; [^\\]+)?' requirements/dev.lock > $(VENV)/versions.txt
	$(BIN)/uv pip compile pyproject.toml --extra demo "$$@" -c $(VENV)/versions.txt -o requirements/demo.lock --upgrade
	$(BIN)/uv pip compile pyproject.toml --extra ui --extra mlflow --extra runbooks --extra samples --extra postgres "$$@" -c $(VENV)/versions.txt -o requirements/server.lock --upgrade
	$(BIN)/uv pip compile pyproject.toml --extra edge "$$@" -c $(VENV)/versions.txt -o requirements/edge.lock --upgrade

install: $(VENV)/.demo ## Only set up what the demo needs
install-dev: $(VENV)/.dev $(VENV)/.torch ## Only set up what the tests need

clean: ## Remove everything that can be made again
	@-$(BIN)/notebooked delete-endpoint --all --yes >/dev/null 2>&1
	rm -rf $(VENV) .notebooked scripts .mypy_cache .ruff_cache .pytest_cache

$(VENV)/.uv:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer on the path; install one, or say which: make PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	touch $@

$(VENV)/.demo: $(VENV)/.uv requirements/demo.lock pyproject.toml
	@echo "Installing what the demo needs (about 800 MB in $(VENV), once) …"
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements/demo.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.uv requirements/dev.lock pyproject.toml
	@echo "Installing what the tests need (about 1.1 GB in $(VENV), once) …"
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements/dev.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@ $(VENV)/.demo

$(VENV)/.torch: $(VENV)/.dev
	@$(BIN)/uv pip install --quiet --python $(BIN)/python "$(TORCH)" || echo "make: no PyTorch; its tests skip" >&2
	touch $@

# Chromium comes from the distribution where we may install it; the page tests skip, with that reason, where not.
$(VENV)/.browser: $(VENV)/.dev
	@if ! command -v chromium chromium-browser google-chrome >/dev/null; then
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null 2>&1 \
	      || echo "make: no Chromium; the tests of pages skip" >&2
	  else echo "make: no Chromium on the path; the tests of pages skip" >&2; fi
	fi
	touch $@

# Microsoft's emulator of blobs comes from npm where there is one; its tests skip, with that reason, where not.
$(VENV)/.azurite: $(VENV)/.dev
	@if command -v npm >/dev/null; then
	  npm install --silent --no-audit --no-fund --prefix $(VENV)/azurite $(AZURITE) >/dev/null 2>&1 \
	    || echo "make: no Azurite; its tests skip" >&2
	else echo "make: no npm on the path; the tests of Azurite skip" >&2; fi
	touch $@

# An OpenSSH server that the tests start stands for a Raspberry Pi. Where systemd runs, Debian's package would also start
# a service that lets people in, which is not for a test command to do: there it is said, and the tests skip.
$(VENV)/.sshd: $(VENV)/.dev
	@if ! PATH="$$PATH:/usr/sbin" command -v sshd >/dev/null || ! command -v rsync >/dev/null; then
	  if [ "$$(id -u)" = 0 ] && [ ! -d /run/systemd/system ] && command -v apt-get >/dev/null; then
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openssh-server rsync; } >/dev/null 2>&1 \
	      || echo "make: no OpenSSH server; the tests of devices skip" >&2
	  else echo "make: no OpenSSH server or no rsync (Debian: openssh-server, rsync); the tests of devices skip" >&2; fi
	fi
	touch $@
