"""Gives every Python process that has this folder in PYTHONPATH the fake GPU of tests/fake_cuda.py."""

import os
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

# Triton's own functions become interpreted ones when it is imported, and any others when they are defined. The
# environment is left without the switch: bench takes the kernels for a GPU's.
os.environ["TRITON_INTERPRET"] = "1"
from triton import knobs

del os.environ["TRITON_INTERPRET"]
knobs.propagate_env = False
knobs.runtime.interpret = True
knobs.propagate_env = True

import fake_cuda  # noqa: E402

_installed = fake_cuda.installed()
_installed.__enter__()
