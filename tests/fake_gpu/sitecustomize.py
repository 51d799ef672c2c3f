"""Gives every Python process that has this folder in PYTHONPATH the fake GPU of tests/fake_cuda.py."""

import atexit
import os
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[1:1] = [str(TESTS), str(TESTS.parent)]

# Triton's own functions become interpreted ones when it is imported, and any others when they are defined. The
# environment is left without the switch: bench takes the kernels for a GPU's.
os.environ["TRITON_INTERPRET"] = "1"
from triton import knobs  # noqa: E402

del os.environ["TRITON_INTERPRET"]
knobs.propagate_env = False
knobs.runtime.interpret = True
knobs.propagate_env = True

import fake_cuda  # noqa: E402

_installed = fake_cuda.installed()
_device = _installed.__enter__()
time.perf_counter = _device.host.now


def _log() -> None:
    Path(os.environ["FAKE_GPU_LOG"]).write_text("".join(f"{work.name}\n" for work in _device.done))


if "FAKE_GPU_LOG" in os.environ:
    atexit.register(_log)
