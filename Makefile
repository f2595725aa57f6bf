# Two commands: `make demo` shows what the library does, `make test` checks that it does it. `make matrix` runs the suite
# under settings that round, share the cores and order otherwise; `make matrix ROWS="1 2"` under some of them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test matrix lint clean

demo: $(INSTALLED)
	$(BIN)/optdepth demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile --randomly-seed=1

matrix: $(INSTALLED)
	$(BIN)/python tests/matrix.py $(ROWS)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The constraints pin what the suite was run with; torch's CPU build is enough.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "optdepth needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build
