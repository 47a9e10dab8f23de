# SPDX-License-Identifier: GPL-3.0-or-later
# `make demo` runs the main job on this machine alone; `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST_ARGS ?=
# Test files that run at a time; those with nodes run alone.
JOBS ?= 2

.PHONY: venv demo lint manual unit e2e fleet test clean

venv:
	@scripts/make-venv $(VENV) $(PYTHON)

demo: venv
	@$(BIN)/python -m scripts.demo

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd ansible && PATH="$(abspath $(BIN)):$$PATH" $(abspath $(BIN))/ansible-lint -q

# Manual pages and completions of the commands' help texts.
manual: venv
	$(BIN)/python scripts/manual.py

unit: venv
	$(BIN)/python -m pytest -m "not e2e and not fleet" -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

# Real guix-daemons and torrent clients in namespaces; needs root.
e2e: venv
	$(BIN)/python -m pytest -m e2e $(PYTEST_ARGS)

# A fleet of machines booted by systemd, deployed by the roles of ansible/; needs root.
fleet: venv
	$(BIN)/python -m pytest tests/fleet -m fleet $(PYTEST_ARGS)

test: lint unit e2e

clean:
	rm -rf $(VENV) build dist *.egg-info
