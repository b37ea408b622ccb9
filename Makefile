# Every command of this project. `make` lists them; CI runs the same names.
#
# PYTHON   the interpreter that makes the virtual environment (3.11 or newer)
# EXTRAS   which optional parts `make install` installs; a server needs only `embedded`

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
EXTRAS ?= embedded,dev,bench
BIN := .venv/bin
STAMP := .venv/.minihs-installed

##@ Use

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} \
	  /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: $(STAMP) ## Make .venv with everything, .venv/bin/minihs among it
	@$(BIN)/python -m compileall -q minihs  # As pip does what it copies: a start that compiles takes twice as long.

$(STAMP): pyproject.toml requirements.lock
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv || { \
	  echo "no virtual environment: is python3-venv installed? (apt-get install python3-venv)" >&2; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "minihs needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[$(EXTRAS)]'
	@touch $@

# Settings: minihs.toml or MINIHS_* variables, see docs/configuration.md.
.PHONY: run
run: install ## From a fresh checkout to a server on 127.0.0.1:8008
	@exec $(BIN)/minihs run

##@ Check

# What fails is played once more, and shown whatever comes of it: docs/developing.md says why.
# ARGS=--fail-on-flaky takes a second success for a failure.
ON_ALL_CORES := --numprocesses auto --maxprocesses 4
ONCE_MORE := --reruns 1 --max-suite-reruns 5 --rerun-show-tracebacks
.PHONY: test
test: install ## The whole test suite, on every PostgreSQL found here
	MINIHS_TEST_POSTGRES=$${MINIHS_TEST_POSTGRES:-all} $(BIN)/python -m pytest $(ON_ALL_CORES) $(ONCE_MORE) $(ARGS)
	MINIHS_TEST_WORKERS=2 $(BIN)/python -m pytest $(ON_ALL_CORES) $(ONCE_MORE) $(ARGS) tests/api tests/conformance  # two processes, one database

.PHONY: test-protocol
test-protocol: install ## The protocol core alone: no database, seconds
	$(BIN)/python -m pytest tests/protocol

# Each seed is a run; what a failure prints plays it again. SCENARIO=netsplit… plays one by name.
SEED ?= 1
N ?= 1
JOBS ?= 1
.PHONY: test-sim
test-sim: install ## Simulate whole servers on a bad network: make test-sim SEED=1 N=1000 JOBS=2
	$(BIN)/python -m tests.simulation --seed $(SEED) --count $(N) --jobs $(JOBS) $(if $(SCENARIO),--scenario $(SCENARIO)) $(ARGS)

.PHONY: fuzz
fuzz: install ## Send the server what no server sends: make fuzz SEED=1 N=100000, or ROUND=… to see one again
	$(BIN)/python -m tests.fuzz --seed $(SEED) --count $(N) $(if $(ROUND),--round $(ROUND)) $(ARGS)

SYNAPSE ?= matrix-synapse==1.163.*
INTEROP_VENV := $(or $(SYNAPSE_VENV),.venv-synapse)
.PHONY: interop
interop: install ## Federate with a real Synapse over TLS on loopback (SYNAPSE_VENV=… if there is one)
	@test -x $(INTEROP_VENV)/bin/python || "$(PYTHON)" -m venv $(INTEROP_VENV)
	@$(INTEROP_VENV)/bin/python -c 'import synapse' 2>/dev/null || \
	  $(INTEROP_VENV)/bin/python -m pip install --quiet --disable-pip-version-check '$(SYNAPSE)'
	MINIHS_INTEROP_SYNAPSE=$(abspath $(INTEROP_VENV)) $(BIN)/python -m pytest tests/interop -p no:randomly $(ARGS)

.PHONY: check check-style check-types check-contracts check-words check-pages
check: check-style check-types check-contracts check-words check-pages ## Lint, types, import contracts, spelling, references, generated pages; no database

check-style: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check-types: install
	$(BIN)/mypy

check-contracts: install
	$(BIN)/lint-imports --no-cache

check-words: install
	$(BIN)/codespell

check-pages: install
	$(BIN)/python -m tools.spec_map --check
	$(BIN)/python -m tools.configuration_page --check
	$(BIN)/python -m tools.attacks_page --check
	$(BIN)/python -m tools.msc_guides --check

.PHONY: fmt
fmt: install ## Format the code and sort its imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

##@ Write

.PHONY: spec-map
spec-map: install ## Rebuild docs/spec: passage -> functions -> tests, endpoint -> handler
	$(BIN)/python -m tools.spec_map

.PHONY: docs
docs: install spec-map ## Rebuild every page that is made from code
	$(BIN)/python -m tools.configuration_page
	$(BIN)/python -m tools.attacks_page
	$(BIN)/python -m tools.msc_guides

.PHONY: migration
migration: install ## Write the next migration from storage/schema.py: make migration M="what changed"
	@test -n "$(M)" || { echo 'say what changed: make migration M="add the pushers table"' >&2; exit 1; }
	$(BIN)/python -m tools.new_migration "$(M)"

.PHONY: lock
lock: install ## Rewrite requirements.lock from what .venv holds
	@{ echo "# The exact set that the suite was run against: pip install -c requirements.lock -e '.[embedded]'"; \
	   $(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools --exclude minihs; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock

##@ Measure and ship

.PHONY: bench
bench: install ## Measure minihs (and Synapse beside it: SYNAPSE_VENV=…); ARGS='--workload send --scale 0.1'
	@mkdir -p bench/out
	$(BIN)/python bench/run.py $(if $(SYNAPSE_VENV),--server synapse) --server minihs --json bench/out/latest.json $(ARGS)

.PHONY: bench-core
bench-core: install ## Measure the parts alone: signing, state resolution, bytes on disk of an event
	$(BIN)/python -m tests.protocol.bench_protocol
	PYTHONPATH=. $(BIN)/python bench/stored_bytes.py

.PHONY: complement-image
complement-image: install ## Build the image complement-minihs that Complement tests
	complement/build.sh

.PHONY: complement-compare
complement-compare: ## What newly passes and fails: make complement-compare RESULTS='out/*.json'
	@test -n "$(RESULTS)" || { echo "which results? make complement-compare RESULTS='out/*.json'" >&2; exit 1; }
	complement/compare.py $(RESULTS)

.PHONY: docker
docker: ## Build the production image minihs:latest
	docker build -f docker/Dockerfile -t minihs:latest .
