# Everything a reader, an author or CI runs. `make` alone lists the commands.
# The first one sets up .venv; later ones skip that until pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HTML := _build/html

# Chapters are written and timed for two cores, and sums of floats depend on the number of threads.
OMP_NUM_THREADS ?= 2
# Kernels choose the backend that shows figures inline; a setting from outside would leave the pages empty.
unexport MPLBACKEND
# The debugger's check of frozen modules is noise on stderr in every kernel.
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.DEFAULT_GOAL := help
.PHONY: help setup book test lint unit notebooks structure lab clean distclean
.DELETE_ON_ERROR:

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv and install the package with all that the book and the tests need

$(STAMP): pyproject.toml
	@command -v $(PYTHON) > /dev/null \
		|| { echo "No $(PYTHON) here: install Python 3.10 or newer, or name it: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "The course needs Python 3.10 or newer and $(PYTHON) is $$($(PYTHON) -V 2>&1): name a newer one, as in make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null \
		|| { echo "$(PYTHON) has no venv module: install it (on Debian and Ubuntu: apt install python3-venv) and try again." >&2; exit 1; }
	@echo "Setting up $(VENV): some minutes and, with PyTorch, some gigabytes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@$(BIN)/python -m pip install --quiet --editable ".[crf]" \
		|| echo "pydensecrf2 did not build here (it needs a C++ compiler): the tests that compare with it will be skipped."
	@touch $@

book: export OMP_NUM_THREADS := $(OMP_NUM_THREADS)
book: $(STAMP)  ## run every chapter and build the book; a failing cell or a warning fails it
	@# --all: what a page shows depends on seglearn/ too, which Sphinx does not know.
	$(BIN)/jupyter-book build . --all -W --keep-going
	@echo "The book is built. Open $(HTML)/index.html, or serve it:"
	@echo "  $(BIN)/python -m http.server --directory $(HTML) 8000    then visit http://localhost:8000"

test: lint unit notebooks structure  ## check everything: style, types, unit tests, every notebook, the book's structure
	@echo "All checks passed: style, types, unit tests, notebooks and the structure of the book."

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: export MPLBACKEND := agg
unit: $(STAMP)  ## the tests in tests/, on all cores
	$(BIN)/python -m pytest --numprocesses auto

notebooks: export OMP_NUM_THREADS := $(OMP_NUM_THREADS)
notebooks: $(STAMP)  ## run every notebook and compare the outputs that the text relies on
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=300 -p no:cacheprovider book

structure: $(STAMP)  ## build the book without running it: links, citations, table of contents, API page
	@mkdir -p _build
	sed 's/execute_notebooks: force/execute_notebooks: off/' _config.yml > _build/structure.yml
	$(BIN)/jupyter-book build . --all -W --keep-going --quiet --config _build/structure.yml --path-output _build/structure

lab: $(STAMP)  ## open the chapters in JupyterLab
	$(BIN)/jupyter lab book

clean:  ## remove the built book and caches
	rm -rf _build build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find book seglearn tests tools benchmarks -name __pycache__ -prune -exec rm -rf {} + 2> /dev/null || true
	find book -name .ipynb_checkpoints -prune -exec rm -rf {} + 2> /dev/null || true

distclean: clean  ## remove .venv as well
	rm -rf $(VENV)
