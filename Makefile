# radtag: `make demo` tags the sample archive with both stages, `make test` runs every check. Both make .venv when it is missing.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.radtag-installed
CACHE := $(or $(RADTAG_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME)/radtag,$(HOME)/.cache/radtag))
DEMO_OUT ?= demo-out
RESULTS_WORKERS ?= 2

.PHONY: help demo test lint bench results install clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## the environment in .venv from requirements.lock

$(STAMP): requirements.lock pyproject.toml .ci/install
	@PYTHON="$(PYTHON)" VENV="$(VENV)" CACHE="$(CACHE)" bash .ci/install
	@touch $(STAMP)

demo: $(STAMP)  ## tag the invented sample archive (12 chest CT, 12 brain MRI) with both stages
	@rm -rf "$(DEMO_OUT)/chest_ct" "$(DEMO_OUT)/brain_mri"
	@for task in chest_ct brain_mri; do \
	  $(BIN)/radtag tag pipeline/sample_archive/$$task.jsonl --task $$task --out "$(DEMO_OUT)/$$task"; \
	  $(BIN)/radtag show "$(DEMO_OUT)/$$task"; \
	done
	@echo "The records are in $(DEMO_OUT)/chest_ct and $(DEMO_OUT)/brain_mri. Try: $(BIN)/radtag export $(DEMO_OUT)/chest_ct --format csv"

lint: $(STAMP)  ## ruff, mypy --strict, the layer contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## every check: lint, then all tests
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest -n 2 --dist loadfile $(PYTEST_ARGS)

bench: $(STAMP)  ## speed of every stage and system: bench/results.json, docs/PERFORMANCE.md (6 minutes; PLAN=archives: an hour, PLAN=long: hours)
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/radtag eval throughput --plan $(or $(PLAN),quick)

results: $(STAMP)  ## every system on the corpus test splits: docs/results.json and docs/RESULTS.md (35 minutes on two cores)
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/radtag eval results --out docs/RESULTS.md --json docs/results.json --workers $(RESULTS_WORKERS)

clean:  ## remove what make made (not the cache folder)
	rm -rf $(VENV) $(DEMO_OUT) build *.egg-info
