# make demo    the whole flow, offline, on data that ships with scikit-learn
# make test    every check: lint, format, types, docs, tests
# make lint    every check but the tests
# make docs    writes docs/cli.md from the command line's own help
# make clean   removes .venv; the libraries stay in the cache, and the next make finds them there
#
# TEST_PROCESSES=1 runs the tests one after the other; each process is single-threaded.
# Each begins by making .venv ready (.ci/environment.py). PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
TEST_PROCESSES ?= 2
VENV := .venv/bin

.PHONY: demo test lint docs clean environment
.DEFAULT_GOAL := demo

demo: environment
	@$(VENV)/natdeploy demo

test: lint
	@# In the order of the files: by number of tests, Ray's few and long ones would come last, on one process alone.
	$(VENV)/python -m pytest -q --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

lint: environment
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/python -m mypy natdeploy cli
	$(VENV)/python docs/generate_cli.py --check

docs: environment
	$(VENV)/python docs/generate_cli.py

clean:
	rm -rf .venv

environment:
	@$(PYTHON) .ci/environment.py
