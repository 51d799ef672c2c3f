"""The fake GPU leaves Triton as it was, whatever happens within."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEFT = """
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bench.fake_gpu import absent_gpu
from bench.audit.calls import calls
from bench.audit.targets import TARGETS, compiling
from normlib import dispatch
from normlib.kernels import host as counters
from normlib.kernels import plan, traffic
from normlib.kernels.row_norm import launch as row_norm

class Driver:
    def get_current_target(self):
        return TARGETS["sm_90"][0]

def state():
    return (driver._active, JITFunction.run, knobs.runtime.jit_cache_hook, dispatch.CPU_RUNS_KERNELS,
        plan.INTERPRETER, counters.capturing, traffic._observer)

call = next(calls(["rms_norm"], ["extra"]))
# No GPU's driver has been asked for, or one that is there is to stay.
for present in (None, Driver()):
    driver.set_active(present)
    before = state()
    for name, (_, device) in TARGETS.items():
        for within in (lambda: compiling(name), lambda: absent_gpu(device)):
            with within() as found:
                for _, run in call.passes():
                    run()
            assert found and state() == before, (name, before, state())
            try:
                with within():
                    raise KeyError
            except KeyError:
                assert state() == before, (name, before, state())
# Kernels are kept by the number of their device, which no device has.
numbers = set(row_norm._row_norm_forward_kernel.device_caches)
assert len(numbers) == len(TARGETS) and max(numbers) < 0, numbers
"""


def test_driver_hooks_and_kernels_are_left_as_they_were_found():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LEFT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
