# The verbs of this repository, the same on a laptop and in CI. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Compiled modules halve every start, so nobody's wish not to keep them is passed on.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
# Folders too: a proto that was removed or renamed leaves no newer file behind, only a newer folder.
PROTOS := $(shell find protos -name '*.proto' -o -type d)

help: ## what you can ask for
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed $(VENV)/.stubs ## install what is missing into .venv

# uv installs the locked set in seconds; where it cannot be had, pip does the same in a minute.
$(VENV)/.installed: requirements.lock pyproject.toml sdk/python/pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "Tieline needs Python 3.11 or newer on the PATH." >&2; exit 2; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@[ -x $(BIN)/uv ] || { \
		sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.lock; \
		$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes \
			-r $(VENV)/uv.lock || echo "uv is not to be had; pip does it, slower"; }
	@if [ -x $(BIN)/uv ]; then \
		VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync -q --require-hashes requirements.lock; \
		VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install -q --no-deps --no-build-isolation -e sdk/python -e .; \
	else \
		$(BIN)/python -m pip install -q --require-hashes -r requirements.lock; \
		$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e sdk/python -e .; \
	fi
	@touch $@

# An editable install keeps stale stubs, so every verb comes past here.
$(VENV)/.stubs: $(VENV)/.installed $(PROTOS) sdk/python/hatch_build.py
	@$(BIN)/python sdk/python/hatch_build.py
	@touch $@

up: install ## run everything on embedded engines until Ctrl-C
	@exec $(BIN)/tieline up $(ARGS)

test: install ## run every test (ARGS="-k word" for some)
	@$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

prove: install ## the long fault and load proofs
	@$(BIN)/python -m pytest -n 0 -m proof --prove $(ARGS)

bench: install ## the benchmarks: a table on stdout, JSON in bench/results/
	@$(BIN)/python -m bench $(ARGS)

check: install ## lint, types, layering, protos, docs
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf format --diff --exit-code protos
	@$(BIN)/buf lint protos
	@$(BIN)/python protos/breaking.py
	@$(BIN)/python docs/generate.py --check

fix: install ## mend what a tool can mend
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix
	@$(BIN)/buf format -w protos
	@$(BIN)/python docs/generate.py

lock: ## rewrite requirements.lock from pyproject.toml
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--all-extras --group dev --no-emit-package tieline -o requirements.lock \
		pyproject.toml

clean: ## remove what was installed and generated
	@rm -rf $(VENV) sdk/python/src/tieline/*/v1 sdk/python/src/tieline/.stubs

.PHONY: help install up test prove bench check fix lock clean
