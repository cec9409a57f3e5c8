# `make demo` and `make test` do all of their own set-up, in .venv; the stamps make the second call instant.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: demo test gpu format clean

demo: $(VENV)/demo.stamp
	$(BIN)/jupyter-execute demo.ipynb --output=results/demo.ipynb
	@cat results/demo.txt

# Two processes of one thread each: the tests wait for the processes they start as often as they compute.
test: $(VENV)/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# On a machine with a CUDA device: that it gives what a processor gives, and how fast it is.
gpu: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m gpu -rs
	$(BIN)/python scripts/tools/benchmark.py --device cuda --sections published training grid raw --output results/benchmark_gpu.md

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis

$(VENV)/demo.stamp: requirements.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) -r requirements.txt
	@touch $@

$(VENV)/test.stamp: requirements.txt requirements_training.txt requirements_dev.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) -r requirements_dev.txt
	@touch $@ $(VENV)/demo.stamp

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("BABY-AI needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	@echo "Setting up $(VENV), which takes some minutes the first time."
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "On Debian and Ubuntu, install python3-venv first."; exit 1; }
