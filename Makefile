# `make` alone explains itself. Everything runs in .venv, which `make setup` fills.

SHELL := /bin/bash
.SHELLFLAGS := -eo pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON ?=
PEERS ?= 3
DIR ?= demo
WORKERS ?= 2
BIN := .venv/bin
CODE := peer coordinator protos configs tests docker $(wildcard benchmarks)

# The generated protobuf code asks for a runtime at least as new as its generator (protobuf 5.29, grpcio 1.71),
# so the generator stays old, in an environment of its own.
GENERATOR := grpcio-tools==1.71.2 protobuf==5.29.6 mypy-protobuf==3.6.0

# One line per package out of pip's three.
define INSTALL_PROGRESS
/^ *(Downloading|Processing|Using cached) .*\.(whl|tar\.gz)/ && !/\.metadata/ {
  size = match($$0, /\([0-9.]+ [kMG]?B\)/) ? substr($$0, RSTART, RLENGTH) : ""
  sub(/^ *(Using cached|[A-Z][a-z]*) /, ""); sub(/ .*/, ""); sub(/.*\//, ""); sub(/\.tar\.gz/, "")
  split($$0, part, "-"); print "    " part[1] " " part[2] " " size; fflush()
}
/^Installing collected/ { print "==> unpacking"; fflush() }
/^ERROR/ { print; fflush() }
endef
export INSTALL_PROGRESS

.PHONY: help setup demo test pytest test-images lint types imports format protos clean

help:  ## this list
	@echo "Commonweights: train open models in common."
	@echo
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' \
	| while IFS=$$'\t' read -r target words; do printf '  make %-11s %s\n' "$$target" "$$words"; done
	@echo
	@echo "  PYTHON=python3.12 make setup    with another Python    PEERS=5 make demo    with more peers"

setup: .venv/installed  ## a virtual environment in .venv with everything installed (a few minutes, once)

.venv/installed: pyproject.toml constraints.txt
	@python=; \
	for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
	    python=$$candidate; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Python 3.11, 3.12 or 3.13 is needed; found: $$($(or $(PYTHON),python3) --version 2>&1 | tail -1)." \
	       "Install one and run: PYTHON=/path/to/python3.12 make setup" >&2; exit 2; \
	fi; \
	echo "==> .venv with $$($$python --version)"; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1 && ! "$$python" -m venv --clear .venv >/dev/null 2>&1; then \
	  rm -rf .venv; \
	  echo "$$python cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; \
	fi; \
	echo "==> installing Commonweights with the versions in constraints.txt (a few minutes; log: .venv/install.log)"; \
	if ! $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' 2>&1 \
	     | tee .venv/install.log \
	     | awk "$$INSTALL_PROGRESS"; then \
	  tail -5 .venv/install.log; echo "installation failed; the whole log is in .venv/install.log" >&2; exit 1; \
	fi
	@touch $@
	@echo "==> ready: make demo, or $(BIN)/commonweights --help"

demo: setup  ## a whole swarm on this machine: a coordinator, 3 peers, a small model; the same again resumes
	@$(BIN)/commonweights-coordinator demo configs/demo.toml --peers $(PEERS) --dir $(DIR)

test: lint types imports pytest  ## everything that must pass before a commit lands

pytest: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

test-images: setup  ## build the images and run a swarm of containers (minutes; needs a Docker engine, or root and dockerd)
	$(BIN)/python -m pytest -p no:cacheprovider --timeout 1800 docker/test_images.py $(ARGS)

lint: setup  ## ruff: style and likely mistakes
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: setup  ## mypy, strict
	$(BIN)/mypy

imports: setup  ## import-linter: who may import whom
	$(BIN)/lint-imports --no-logo

format: setup  ## let ruff mend what it can
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

protos: setup .venv-protos/installed  ## generate the Python code of protos/*.proto
	PATH="$(CURDIR)/.venv-protos/bin:$$PATH" .venv-protos/bin/python -m grpc_tools.protoc -I . \
	  --python_out=. --pyi_out=. --grpc_python_out=. --mypy_grpc_out=quiet:. protos/coordinator.proto
	.venv-protos/bin/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. protos/log.proto protos/swarm.proto
	$(BIN)/python -m protos.document > docs/api.md
	$(BIN)/python -m pytest -q tests/test_protos.py tests/test_api_docs.py

.venv-protos/installed: Makefile
	$(BIN)/python -m venv --clear .venv-protos
	.venv-protos/bin/python -m pip install -q --disable-pip-version-check $(GENERATOR)
	@touch $@

clean:  ## remove the environments and caches; runs and demo folders stay
	rm -rf .venv .venv-protos build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
