# Every target sets up by itself what it needs, in a virtual environment of its own.
#   make run [CONFIG=configs/toy.py] [ARGS="--config.seed=1"]     make test [ARGS="-k splits"]
#   make docs [SITE=site]
# PYTHON names the interpreter to build the environment with, VENV its place.

RECENT := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
  $$python -c '$(RECENT)' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
CONFIG ?= configs/toy.py
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet

SITE ?= site

.PHONY: run test setup lint format docs

run: $(VENV)/ready-to-run
	$(VENV)/bin/python -m pdrec_jax.main --config=$(CONFIG) $(ARGS)

test: $(VENV)/ready-to-develop
	$(VENV)/bin/python -m pytest --numprocesses=auto $(ARGS)

setup: $(VENV)/ready-to-develop

lint: $(VENV)/ready-to-develop
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/shellcheck --external-sources .ci/run launch/*.sh launch/job.sbatch

format: $(VENV)/ready-to-develop
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Fails on a broken link; the warning that it keeps quiet is about a later MkDocs, which is not used.
docs: $(VENV)/ready-to-document
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet --site-dir $(SITE)

$(VENV)/bin/python:
	$(if $(PYTHON),,$(error Python 3.11 or later is needed: give its path as PYTHON=...))
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready-to-run: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[plots]'
	@touch $@

$(VENV)/ready-to-develop: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/ready-to-run

$(VENV)/ready-to-document: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[docs]'
	@touch $@
