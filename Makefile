# The commands for users and developers. On Debian 12 with python3, git and make, `make up` is the whole installation.
.DEFAULT_GOAL := help
.PHONY: help up upgrade demo admin-key test test-faults compose-test check fmt bench clean

VENV := .venv/.made
BIN := .venv/bin
# If it is set, each process compiles a thousand modules.
unexport PYTHONDONTWRITEBYTECODE
# Tests wait more than they compute, so more workers than cores are faster. `make test PYTEST='-x tests/unit'` runs fewer.
PYTEST ?= -n 4 --dist loadgroup
FAULTS_PYTEST ?= -n 3 --dist loadgroup
# The file of the table of faults; empty: the table is not written.
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

test: $(VENV) ## all tests, without fault injection and containers
	$(BIN)/pytest -m "not faults and not compose" $(PYTEST)

test-faults: $(VENV) ## fault injection, half an hour; writes the table of docs/reliability.md
	@scripts/apt-install iproute2 iptables strace || true # tests of missing programs are skipped, with the reason
	BELLHOP_RELIABILITY_PAGE=$(FAULTS_PAGE) $(BIN)/pytest -m faults tests/faults $(FAULTS_PYTEST)

compose-test: $(VENV) ## compose.yaml in containers, from a clean copy (needs a Docker Engine)
	$(BIN)/pytest -m compose -v $(COMPOSE) $(COMPOSE_PYTEST)

check: $(VENV) ## checks before a commit: linter, format, types, imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

fmt: $(VENV) ## format, and apply the linter's automatic fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV) ## all benchmarks, each with its peer; bench-accept, bench-publish, … for one of them
	$(BIN)/python -m bench

bench-%: $(VENV)
	$(BIN)/python -m bench $*

clean: ## delete everything: databases, secrets, the broker's data, the virtual environment
	rm -rf .bellhop .venv

$(VENV): pyproject.toml uv.lock scripts/bootstrap
	@scripts/bootstrap
	@touch $@
