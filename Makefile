# What continuous integration runs is what you run. `make help` lists the targets.

VENV ?= .venv
BIN := $(VENV)/bin

# The first Python of these that is 3.11 to 3.13. Choose another with `make setup PYTHON=...`.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	if $$p -c '$(FITS)' 2>/dev/null; then echo $$p; break; fi; done)

# The stamp carries a checksum of what the installation depends on: a changed file means a new stamp.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

DEMO_OUT ?= runs/demo
ZOO := tasks/models/zoo
PYTEST_ARGS ?=
# Processes that share the test files; 0 runs them in one.
TEST_PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo results docs test check format lint types imports bench gpu train-zoo clean

help:  ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "  make %-10s %s\n", substr($$1, 3), $$2}'

setup: $(STAMP)  ## create the environment in .venv (does nothing when it is up to date)

$(STAMP):
	@test -n "$(PYTHON)" || { echo "make setup: no Python 3.11 to 3.13 on the path; install one or give PYTHON=..." >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "creating $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing fewstep with the versions of constraints.txt (the first time takes minutes)"
	$(PIP) install -c constraints.txt setuptools
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: setup  ## search samplers for the bundled digits model and print the table
	@rm -rf $(DEMO_OUT)
	$(BIN)/fewstep search --recipe digits-demo --out $(DEMO_OUT)
	$(BIN)/fewstep report --out $(DEMO_OUT) --html $(DEMO_OUT)/report.html --json >/dev/null

results: demo  ## run the demo and write its files into docs/results, and docs/results.md
	$(BIN)/fewstep report --out $(DEMO_OUT) --csv docs/results/digits_demo.csv
	cp $(DEMO_OUT)/images.png docs/results/digits_demo_images.png
	cp $(DEMO_OUT)/front.png docs/results/digits_demo_front.png
	cp $(DEMO_OUT)/schedules.png docs/results/digits_demo_schedules.png
	$(BIN)/python -m benchmarks.tables.page

docs: setup  ## build the documentation into build/docs; a broken link is an error
	@$(BIN)/python -c 'import furo, myst_parser' 2>/dev/null || $(PIP) install -c constraints.txt --no-build-isolation -e '.[docs]'
	$(BIN)/python -P -m sphinx -b html -W --keep-going -q docs build/docs
	@echo "build/docs/index.html"

test: setup  ## run the tests (choose with PYTEST_ARGS="-m 'not slow'")
	PYTHONSAFEPATH=1 $(BIN)/python -P -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: lint types imports  ## formatting, lint, types and the arrows between the folders

format: setup  ## rewrite the code as `make lint` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: setup  ## ruff: formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup  ## mypy, strict
	$(BIN)/mypy

imports: setup  ## import-linter: who may import whom
	$(BIN)/lint-imports

bench: setup  ## run every benchmark; each ends with one JSON line
	@set -e; for file in benchmarks/[a-z]*.py; do \
		echo "== $$file"; $(BIN)/python -m benchmarks.$$(basename $$file .py); done

gpu: setup  ## half precision, compilation and int8 on a GPU: how fast, and how far from FP32
	$(BIN)/python -m benchmarks.accelerator --device cuda --out runs/gpu

train-zoo: setup  ## train the bundled models again (long)
	$(BIN)/fewstep train digits-ddpm --out $(ZOO)/digits-ddpm
	$(BIN)/fewstep train digits-edm --out $(ZOO)/digits-edm
	$(BIN)/fewstep train fashion-ddpm --out $(ZOO)/fashion-ddpm
	$(BIN)/fewstep train fashion-lfm --out $(ZOO)/fashion-lfm
	$(BIN)/fewstep train fashion-lfm-dit --out $(ZOO)/fashion-lfm-dit
	$(BIN)/fewstep train fashion-lfm-inpaint --from $(ZOO)/fashion-lfm --out $(ZOO)/fashion-lfm-inpaint
	$(BIN)/fewstep train fashion-lfm-layout --from $(ZOO)/fashion-lfm --out $(ZOO)/fashion-lfm-layout

clean:  ## remove what was built and cached (the environment and runs/ stay)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find benchmarks dashboards fewstep pipeline search_spaces storage tasks tests -name __pycache__ -type d -prune -exec rm -rf {} +
