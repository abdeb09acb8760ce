# Tower: `make demo` shows the main job on a real apiserver, `make test` runs every test.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# Debian's own Python, where it is new enough, is built with profiles and link-time optimisation: a fifth more requests a
# second through the tunnel than with the plain build that pyenv makes.
PYTHON ?= $(shell /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo /usr/bin/python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where bytecode may not be kept, each run compiles the tests and each program they start the product anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help venv check assets test test-fast $(FAST) soak demo bench bench-controller clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 25

venv: $(STAMP) ## a virtual environment with everything in it
$(STAMP): pyproject.toml
	@$(PYTHON) -m tests.lab.debian python3-venv
	@echo "setting up a virtual environment in $(VENV), about half a minute"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

check: $(STAMP) ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Rings 1 and 2 by rooms, the longest first, four at a time: each process imports and starts what its own room needs.
RINGS_OF_PROGRAMS := $(foreach ring,interop kubernetes lab loopback simulation,tests/$(ring)/)
FAST_server := $(wildcard tests/tower_server/test_*.py)
FAST_protocol := tests/protocol/
FAST_agent := tests/tower_agent/
FAST_towerctl := tests/towerctl/
FAST_dialects := $(filter-out %__pycache__/,$(wildcard tests/tower_server/*/))
FAST_rest := $(filter-out $(RINGS_OF_PROGRAMS) tests/tower_server/ $(FAST_protocol) $(FAST_agent) $(FAST_towerctl) %__pycache__/,$(wildcard tests/*/))
FAST := $(foreach room,server dialects agent protocol rest towerctl,fast-$(room))
test-fast: $(STAMP) ## rings 1 and 2 without floods, leak loops and whole programs
	@$(MAKE) --no-print-directory --keep-going --jobs=4 --output-sync=target $(FAST)
$(FAST): fast-%:
	@echo "$@"
	@TMPDIR=$$(test -w /dev/shm && echo /dev/shm || echo /tmp) $(BIN)/pytest -m "not slow and not cluster" -q \
	  --hypothesis-profile=fast -p no:cacheprovider -o tmp_path_retention_policy=failed $(FAST_$*)

test: $(STAMP) check ## everything, all rings, from nothing
	@$(BIN)/python -m tests.lab.debian iproute2 nftables systemd libfaketime fish zsh
	@$(BIN)/python -m tests.lab.assets >/dev/null
	$(BIN)/pytest

soak: $(STAMP) ## the planted bugs, then fresh seeds of the simulation for as long as asked [SECONDS=600]
	$(BIN)/python -m tests.simulation --seconds $(or $(SECONDS),600)

assets: $(STAMP) ## a real control plane, built once from Go modules and kept in .cache
	@$(BIN)/python -m tests.lab.assets

demo: $(STAMP) ## kubectl through the tunnel to a member that nobody can dial [ONCE=1] [MEMBER_KUBECONFIG=FILE]
	@$(BIN)/python -m tests.lab.demo

bench: $(STAMP) ## speed and memory beside the direct way; about 25 minutes on an idle machine
	$(BIN)/python -m bench
	$(BIN)/python -m bench.kubesphere

bench-controller: $(STAMP) ## a thousand clusters on a real apiserver, a restart, ten idle minutes; about 15 minutes
	$(BIN)/python -m bench.controller

clean: ## what make made, the cached control plane apart
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
