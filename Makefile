# Everything runs from .venv in this folder. A different Python: `make setup PYTHON=python3.12`.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

ifndef FEDSIM_DATA
ifneq ($(wildcard ../shared/data),)
export FEDSIM_DATA := $(abspath ../shared/data)
endif
endif

.PHONY: help setup quickstart docs test test-slow test-kill test-network test-flower test-device gpu papers check format bench proto docker-test

help:
	@echo "make setup       create .venv with the tested versions (constraints.txt)"
	@echo "make quickstart  run scenarios/quickstart.yaml: three ways to train, one picture"
	@echo "make docs        build the pages of docs/ with the reference into build/site; a dead link fails"
	@echo "make test        run the tests (WORKERS=$(WORKERS) processes)"
	@echo "make test-slow   what takes long and finds little more: each run of each shipped sweep, a dead introducer (some 2 minutes)"
	@echo "make test-kill   kill runs with SIGKILL at twenty moments of each kind, resume, compare; kill workers of peers (some 20 minutes)"
	@echo "make test-network real machines' links, at their real size: 1 Mbit/s, cuts, idle minutes, hostile frames (as root; some 40 minutes)"
	@echo "make test-flower  fedsim as a Flower app: SuperLink and SuperNodes in processes, Flower's local simulation where ray is there (some 15 minutes)"
	@echo "make test-device  a GPU's path on an emulated device: each method, schedule and codec beside the CPU, and what it costs (some 4 minutes)"
	@echo "make gpu         on a machine with a CUDA device: plans agree, bits come again, a round never waits; then fedsim bench gpu"
	@echo "make papers      run every scenarios/papers/*.yaml whole, one after the other (hours); PAPERS='fedstale fedfix' for some"
	@echo "make check       format, lint, types and which module may import which, as CI checks them"
	@echo "make format      format and mend what can be mended"
	@echo "make proto       generate the code of fedsim/transport/messages.proto (a test checks that it is current)"
	@echo "make docker-test  build the CPU image with buildah, run docker/compose.yaml (root; Debian's buildah and debootstrap)"
	@echo "make bench       speed and scale on this machine, beside their targets"

setup: .venv/installed
	@:

# Done once, and again when a dependency or the version changes.
.venv/installed: pyproject.toml constraints.txt fedsim/__init__.py
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "fedsim needs Python 3.11 or newer: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || { echo "Creating .venv"; $(PYTHON) -m venv .venv; }
	@echo "Installing PyTorch into .venv (the first time this takes minutes)"
	@$(INSTALL) torch
	@echo "Installing fedsim and the other packages"
	@$(INSTALL) -e '.[dev]'
	@touch $@
	@echo "Ready: $(BIN)/fedsim --help"

quickstart: setup
	$(BIN)/fedsim run scenarios/quickstart.yaml

docs: setup
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --strict --clean

test: setup
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -q -n $(WORKERS) -m slow

test-kill: setup
	$(BIN)/python -m pytest -q -n $(WORKERS) -m kill

test-network: setup
	$(BIN)/python -m pytest -q -s -n 0 -m network

test-flower: setup
	$(BIN)/python -m pytest -q -n 0 -m flower

test-device: setup
	$(BIN)/python -m pytest -q -n $(WORKERS) -m device

gpu: setup
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else f"make gpu: there is no CUDA device here (torch {torch.__version__})")'
	$(BIN)/python -m pytest -q -n 0 -m gpu
	$(BIN)/fedsim bench gpu

PAPERS ?= $(basename $(notdir $(wildcard scenarios/papers/*.yaml)))

papers: setup
	for paper in $(PAPERS); do $(BIN)/fedsim run scenarios/papers/$$paper.yaml || exit 1; done

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/fedsim bench

proto: setup
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. fedsim/transport/messages.proto

docker-test: setup
	$(BIN)/python docker/test.py
