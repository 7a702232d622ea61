# Set-up and checks; every target makes the virtual environment itself and is cheap to run again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: quickstart test lint format docs clean

quickstart: $(STAMP)
	$(BIN)/glora-search run quickstart --workers 2

# Lint first: it is the fastest to say no.
test: lint quickstart
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, in site/; the recipe's reference is written anew from its schema first.
docs: $(STAMP)
	$(BIN)/python docs/recipe_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# --no-compile: Python compiles what is imported, when it is.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "glora-search needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist site
