# make demo   sets everything up, then runs the main job
# make test   sets everything up, then runs the linters and the tests
# make notebooks  runs the notebooks and writes them back with their figures (some minutes)
# make bench  measures speed and memory (an idle machine, some minutes)
#
# PYTHON=python3.12 chooses the interpreter of .venv; JOBS=4 the test processes; PYTEST_ARGS="-k layernorm" some tests.

VENV := .venv
READY := $(VENV)/.vit-hwsim-ready
JOBS ?= 2
PYTEST_ARGS ?=

.DEFAULT_GOAL := setup
.PHONY: setup demo notebooks bench test lint clean distclean

setup: $(READY)
	@echo "Ready. Next: make demo, make test, or $(VENV)/bin/hwsim --help"

$(READY): pyproject.toml tools/setup.sh
	@sh tools/setup.sh $(VENV)
	@touch $@

demo: $(READY)
	$(VENV)/bin/hwsim demo

notebooks: $(READY)
	$(VENV)/bin/python tools/run_notebooks.py

bench: $(READY)
	$(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(VENV)/bin/python --editable '.[bench]'
	$(VENV)/bin/hwsim bench

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# One thread a test process: threads of several processes that wait for each other at barriers cost more than they give.
test: lint
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(VENV)/bin/pytest -n $(JOBS) $(PYTEST_ARGS)

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find golden hwsim rtl sim_tests tests -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
