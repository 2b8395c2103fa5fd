# Two commands for most people: `make run` (demo, end to end) and `make test`.
PYTHON ?= python3
# Plain `torch` brings a CUDA build of several gigabytes; this one is enough for hosts without a GPU.
# For a CUDA build: make install TORCH=torch
TORCH ?= torch==2.13.*
BIN := .venv/bin
HOME_DIR := $(CURDIR)/.dagster_home
OUTPUT_DIR ?= output
CHUNKED_DIR ?= $(if $(wildcard corpora),corpora,ensemble_assets/sample)
PORT ?= 3000

.DEFAULT_GOAL := help
.PHONY: help install run ui test lint test-nightly test-kill-points test-operations test-ui test-qdrant test-gpu pictures clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/' | expand -t 16

install: .venv/.installed  ## a virtual environment with everything, in .venv

# What TORCH was asked for last; another one on the command line installs again.
ifeq ($(origin TORCH),command line)
.venv/.installed: .venv/.torch
.venv/.torch: FORCE
	@mkdir -p .venv; echo "$(TORCH)" | cmp -s - $@ || echo "$(TORCH)" > $@
FORCE:
REINSTALL := --force-reinstall
endif

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(REINSTALL) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded,dev]'
	touch $@

$(HOME_DIR)/dagster.yaml: dagster.yaml
	mkdir -p $(HOME_DIR)
	cp dagster.yaml $@

run: install $(HOME_DIR)/dagster.yaml  ## the demo collection through every stage
	DAGSTER_HOME=$(HOME_DIR) $(BIN)/ensemble-assets demo --output-dir $(OUTPUT_DIR)
	@echo "The bundle is in $(OUTPUT_DIR)/pydoc. To look at the run in the browser: make ui, then http://127.0.0.1:$(PORT)"

# Dagster says several lines a second, and warns of the dagster.yaml here, which is only the one to copy; what is worth
# knowing stands in the UI. The processes of runs say a line a stage all the same.
ui: install $(HOME_DIR)/dagster.yaml  ## the Dagster UI on 127.0.0.1
	@echo "Dagster starts on http://127.0.0.1:$(PORT); what its runs say is shown here too. Ctrl-C stops it"
	@DAGSTER_HOME=$(HOME_DIR) EMBEDDER_CHUNKED_DIR=$(abspath $(CHUNKED_DIR)) EMBEDDER_OUTPUT_DIR=$(abspath $(OUTPUT_DIR)) \
		PYTHONWARNINGS=ignore $(BIN)/dagster dev -h 127.0.0.1 -p $(PORT) -w workspace.yaml --log-level error

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy ensemble_assets_tests/benchmarks
	$(BIN)/lint-imports

test: lint  ## linters, types, import contracts and the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not nightly and not gpu and not ui and not operations"

test-nightly: install  ## thousands of simulated runs and odd inputs, three versions of qdrant-client, one hundred killed runs
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -m "nightly"

test-kill-points: install  ## only the last: one hundred runs killed at random points
	$(BIN)/python -m pytest -s -m nightly ensemble_assets_tests/compute/running/test_kill_points.py

test-operations: install  ## twelve runs at once, a backfill of twenty, killed daemons and runs (half an hour)
	$(BIN)/python -m pytest -m operations ensemble_assets_tests/operations

test-ui: install  ## the UI in a real browser (needs Chromium; skips where it is not installed)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[ui]'
	$(BIN)/python -m pytest -m ui -rs ensemble_assets_tests/ui

test-qdrant: install  ## uploads to a real Qdrant server (skips where there is no program qdrant on the path)
	$(BIN)/python -m pytest -rs ensemble_assets_tests/export/read/test_qdrant_real_server.py

test-gpu:  ## the same promises on real CUDA devices; installs nothing, skips where there are none
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m pytest -m gpu -rs ensemble_assets_tests/gpu

pictures: install  ## the screenshots in docs/pictures (needs Chromium)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[ui]'
	$(BIN)/python -m ensemble_assets_tests.ui.pictures

clean:  ## everything that the other targets made
	rm -rf .venv .dagster_home output
