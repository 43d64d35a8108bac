# Every target does its own set-up: a .venv, made once and re-used while its inputs stay the same.
PYTHON := .venv/bin/python
JOB := examples/digits.yaml

.PHONY: help demo test test-full chaos lint format bench clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

.venv/installed: pyproject.toml constraints.txt
	test -x $(PYTHON) || python3.12 -m venv .venv
	$(PYTHON) -m pip install --quiet uv
	.venv/bin/uv pip install --quiet --python $(PYTHON) --constraint constraints.txt -e '.[demo,hf,dev]'
	touch $@

demo: .venv/installed  ## train a small vision-language model on disjoint actor groups
	.venv/bin/disagg-train train $(JOB) --overwrite

test: .venv/installed  ## unit tests and parity with one process
	$(PYTHON) -m pytest -m "not slow and not bench and not gpu and not soak"

test-full: .venv/installed  ## the long suites and the benchmarks' thresholds
	$(PYTHON) -m pytest -m "slow or bench"

chaos: .venv/installed  ## 300 faults at random moments, and what ends or changes a run
	CHAOS_FAULTS=300 $(PYTHON) -m pytest tests/chaos tests/ray/test_recovery.py tests/ray/test_plan_relay.py tests/bench/test_recovery.py -m "slow or soak"

lint: .venv/installed  ## style, types and import layers
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: .venv/installed  ## rewrite the code in the house style
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: .venv/installed  ## measure all that has a bar, also what takes too long for test-full
	$(PYTHON) -m pytest tests/bench -m "bench or soak"

clean:  ## remove what the targets made
	rm -rf .venv runs build *.egg-info
