# The two commands: `make bench` and `make test`. Both set up .venv the first time, and again when what it is made
# from changes.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: bench test flakes lint audit expectations coverage mutants cheats ptx sanitize tune first-gpu rehearse-gpu given-out \
	peer-wheels clean

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

# What passes are expected to reach, by simulation of their machine code: the kept table of it, made anew.
expectations: $(READY)
	PYTHONPATH=. $(VENV)/bin/python tests/bench/audit/test_expectations.py --write
	git diff --stat tests/bench/audit/expectations.csv

# Whether tests execute every function that measures, those that only a GPU runs included.
COVERAGE := $(VENV)/bin/python -m coverage
coverage: export COVERAGE_FILE = $(VENV)/coverage
coverage: $(READY)
	$(COVERAGE) erase
	$(COVERAGE) run -m pytest -q $(addprefix tests/bench/,test_on_a_fake_gpu.py test_tune.py measure/timing \
	    $(addprefix measure/test_,$(addsuffix .py,environment runner telemetry worker)))
	$(COVERAGE) combine -q
	$(COVERAGE) json -q -o $(VENV)/coverage.json
	$(VENV)/bin/python tests/unexecuted.py $(VENV)/coverage.json

# Plants bugs in the kernels, one at a time; the accuracy gate has to notice each.
mutants: $(READY)
	$(VENV)/bin/python -m pytest tests/mutants -m ''

# Providers that cheat, each of which the judge refuses, and honest ones that are unusual, which pass.
cheats: $(READY)
	$(VENV)/bin/python -m pytest -q tests/cheats --cheats

# Executes what every kernel is compiled to for an NVIDIA GPU, in several orders of its programs and warps.
ptx: $(READY)
	$(VENV)/bin/python -m pytest -q -n 2 --dist worksteal tests/ptx -m ''

# Out of bounds, races, unwritten memory; on a GPU compute-sanitizer too.
sanitize: $(READY)
	$(VENV)/bin/python -m pytest tests/kernels/test_sanitizer.py

# Measures other values of what plans choose, and keeps those that are faster on this GPU.
tune: $(READY)
	$(VENV)/bin/python -m bench.tune

# All that a GPU can tell in nine minutes, without a network or an installation, as one archive: OUT=DIR, MINUTES=9.
MINUTES ?= 9
first-gpu rehearse-gpu: | given-out
given-out:
	$(if $(OUT),,$(error give the folder for the archive: OUT=DIR))

first-gpu:
	$(PYTHON) -m bench.first_gpu --out $(OUT) --minutes $(MINUTES)

# The same, with its smallest sizes, on a fake GPU.
rehearse-gpu: $(READY)
	$(VENV)/bin/python -m bench.first_gpu --out $(OUT) --rehearse

# Wheels of peers for a GPU machine without a network (Linux x86-64, Python 3.12), which first-gpu takes from .whl/.
peer-wheels:
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	    $(foreach glibc,17 24 27 28 31 34 35 39,--platform manylinux_2_$(glibc)_x86_64) \
	    --platform manylinux2014_x86_64 --platform manylinux1_x86_64 --dest .whl \
	    liger-kernel nvidia-cudnn-frontend fla-core apache-tvm-ffi einops

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench,test,dev]'
	touch $@

clean:
	rm -rf $(VENV)
