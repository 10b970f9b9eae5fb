# Two commands: `make demo` runs the main job on embedded data, `make test` passes the tests.
# Both make their own environment in .venv and may be repeated or interrupted at any time.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
RUNS := runs

.PHONY: help demo test lint types docs clean

help: ## say what each target does
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

.venv/ready: pyproject.toml .ci/constraints.txt
	@echo "== environment in .venv (PyTorch and its libraries: several GB, some minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c .ci/constraints.txt -e '.[dev]'
	$(BIN)/python -c 'import nni_sparsevd'
	@touch $@

demo: .venv/ready ## sparsify, shrink, check and report two networks on scikit-learn's digits
	@echo "== single weights of LeNet-300-100"
	$(BIN)/nni-sparsevd compress --recipe examples/recipes/digits_unstructured.toml --out $(RUNS)/digits_unstructured --overwrite
	@echo "== whole channels of a timm ResNet-18"
	$(BIN)/nni-sparsevd compress --recipe examples/recipes/digits_structured.toml --out $(RUNS)/digits_structured --overwrite
	@echo "== done: open $(RUNS)/digits_unstructured/report.html and $(RUNS)/digits_structured/report.html"

test: lint types docs ## lint, types, docs, and all tests
	@echo "== tests"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/ready ## ruff
	@echo "== lint"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready ## mypy
	@echo "== types"
	$(BIN)/mypy

docs: .venv/ready ## build the documentation, strictly
	@echo "== documentation"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove the environment and what was built
	rm -rf .venv site build *.egg-info .pytest_cache .ruff_cache .mypy_cache
