# What a person types. On a fresh Debian 12 with python3, git and make, `make up` is the whole installation.
.DEFAULT_GOAL := help
.PHONY: help up upgrade demo admin-key test test-faults compose-test check fmt bench clean

VENV := .venv/.made
BIN := .venv/bin
# A shell that sets it would have each process compile a thousand modules.
unexport PYTHONDONTWRITEBYTECODE
# The tests wait more than they compute, so more workers than cores pay. `make test PYTEST='-x tests/unit'` for less.
PYTEST ?= -n 4 --dist loadgroup
FAULTS_PYTEST ?= -n 3 --dist loadgroup
# Where the table of faults goes; empty: nowhere.
FAULTS_PAGE ?= docs/reliability.md
COMPOSE ?= tests/compose

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

up: $(VENV) ## run everything here, in the foreground, until Ctrl-C
	@exec $(BIN)/bellhop up

upgrade: ## bring the running containers to this version, new replicas beside old ones
	@deploy/upgrade

demo: $(VENV) ## drive a running Bellhop, with visible progress
	@exec $(BIN)/bellhop demo

admin-key: $(VENV) ## print the admin key of the running Bellhop
	@exec $(BIN)/bellhop admin-key

test: $(VENV) ## all tests but those that break things on purpose
	$(BIN)/pytest -m "not faults and not compose" $(PYTEST)

test-faults: $(VENV) ## break everything on purpose, half an hour; the table goes into docs/reliability.md
	@scripts/apt-install iproute2 iptables strace || true # what is still missing is skipped, and says so
	BELLHOP_RELIABILITY_PAGE=$(FAULTS_PAGE) $(BIN)/pytest -m faults tests/faults $(FAULTS_PYTEST)

compose-test: $(VENV) ## compose.yaml in containers, from a clean copy (needs a Docker Engine)
	$(BIN)/pytest -m compose -v $(COMPOSE) $(COMPOSE_PYTEST)

check: $(VENV) ## what must hold before a commit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

fmt: $(VENV) ## format and repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV) ## the figures, each beside its peer; bench-accept, bench-publish, … one of them
	$(BIN)/python -m bench

bench-%: $(VENV)
	$(BIN)/python -m bench $*

clean: ## forget everything: databases, secrets, the broker's data, the virtual environment
	rm -rf .bellhop .venv

$(VENV): pyproject.toml uv.lock scripts/bootstrap
	@scripts/bootstrap
	@touch $@
