# The two commands: `make bench` and `make test`. Both set up .venv the first time, and again when what it is made
# from changes.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: bench test flakes lint audit mutants sanitize tune clean

bench: $(READY)
	$(VENV)/bin/python -m bench.run --op bn

test: $(READY)
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

# Whether a test fails by chance: each one that may, thirty times beside two busy loops. FLAKES narrows it, as in
# `make flakes FLAKES=tests/distributed`.
flakes: $(READY)
	$(VENV)/bin/python tests/flakes.py $(FLAKES)

# Style and types.
lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# What every plan moves, and what the compiler makes of every kernel, for GPUs that need not be here.
audit: $(READY)
	$(VENV)/bin/python -m bench.audit

# Plants bugs in the kernels and sees whether the accuracy gate notices each.
mutants: $(READY)
	$(VENV)/bin/python -m bench.mutants

# Out of bounds, races, unwritten memory; on a GPU compute-sanitizer too.
sanitize: $(READY)
	$(VENV)/bin/python -m pytest tests/kernels/test_sanitizer.py

# Measures other values of what plans choose, and keeps those that are faster on this GPU.
tune: $(READY)
	$(VENV)/bin/python -m bench.tune

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench,test,dev]'
	touch $@

clean:
	rm -rf $(VENV)
