# Two commands: `make run` starts the server, `make test` runs every test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export AUDIT_STREAM_DATA_DIR ?= $(CURDIR)/data

.PHONY: run lock clients test test-browser faults bus relay-kills project-kills consumer-kills mutants lint format bench clean

# The environment is made again whenever what it is made from changes.
$(VENV)/.run: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[postgres,kafka]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@

run: $(VENV)/.run
	@$(BIN)/audit-stream serve

test: $(VENV)/.dev
	@$(BIN)/python -m pytest $(ARGS)

# The dashboard in a headless Chromium, which the system has to have: /usr/bin/chromium.
test-browser: $(VENV)/.dev
	@$(BIN)/python -m pytest tests/dashboard $(ARGS)

# Breaks everything, again and again: ARGS='--seed 7', '--injections 600', '--only "disk full"'. See docs/failures.md.
faults: $(VENV)/.dev
	@$(BIN)/python -m tests.faults.campaign $(ARGS)

# The bus with 8 processes of 2,000 lines that are killed, and a file of 2 GB; `make test` does the same, smaller.
bus: export AUDIT_STREAM_TEST_BUS_PROCESSES = 8
bus: export AUDIT_STREAM_TEST_BUS_LINES = 2000
bus: export AUDIT_STREAM_TEST_BUS_MB = 2000
bus: $(VENV)/.dev
	@$(BIN)/python -m pytest tests/bus/test_log.py -n 0 $(ARGS)

# 30 SIGKILLs of the Postgres relay during 5,000 changes; KILLS=100 SEED=7 for another run.
relay-kills: $(VENV)/.dev
	@AUDIT_STREAM_TEST_RELAY_KILLS=$(or $(KILLS),30) AUDIT_STREAM_TEST_RELAY_SEED=$(or $(SEED),1) \
		$(BIN)/python -m pytest tests/postgres/test_relay_killed.py -k again_and_again -n 0 -s $(ARGS)

# 30 SIGKILLs of the projections; KILLS=100 SEED=7 for another run.
project-kills: $(VENV)/.dev
	@AUDIT_STREAM_TEST_PROJECT_KILLS=$(or $(KILLS),30) AUDIT_STREAM_TEST_PROJECT_SEED=$(or $(SEED),1) \
		$(BIN)/python -m pytest tests/sinks/test_killed.py -k again_and_again -n 0 -s $(ARGS)

# 20 SIGKILLs of the Kafka consumer during 10,000 records, 1 % garbage; KILLS=100 SEED=7 for another run.
consumer-kills: $(VENV)/.dev
	@AUDIT_STREAM_TEST_CONSUMER_KILLS=$(or $(KILLS),20) AUDIT_STREAM_TEST_CONSUMER_SEED=$(or $(SEED),1) \
		$(BIN)/python -m pytest tests/kafka/test_killed.py -k again_and_again -n 0 -s $(ARGS)

# Changes the code in one place at a time, in a copy, and shows which changes no test notices; see tests/README.md.
# ARGS='--seed 7 --sample 20', '--only NAME', '--list'.
mutants: $(VENV)/.dev
	@$(BIN)/python -m tests.mutants $(ARGS)

# The test of the generated clients with npm as well: it installs the pinned generator and compiler.
clients: export AUDIT_STREAM_TEST_NPM = 1
clients: $(VENV)/.dev
	@$(BIN)/python -m pytest tests/contract/test_generated_clients.py -n 0 $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Side by side with what it replaces; ARGS='--quick' for a first look, '--row NAME' for a part.
bench: $(VENV)/.run
	@$(BIN)/python -m benchmarks $(ARGS)

# What the image installs, with a hash for each file of each platform. `ARGS='--upgrade'` takes what is newest.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.13 --generate-hashes --no-annotate --no-emit-index-url
lock: $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
	@$(LOCK) --custom-compile-command 'make lock' $(ARGS) --extra postgres --extra kafka pyproject.toml -o requirements.lock
	@$(LOCK) --custom-compile-command 'make lock' $(ARGS) --group build --no-emit-package pip -o requirements-build.lock

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
