"""Every kernel launched as on an H200, by Triton's own driver, on tensors without memory: run with absent_cuda.c.

Prints what the launches were declared to be, one JSON object a launch.
"""

import json

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver

from bench.audit.calls import launches, one_of_each_plan
from bench.audit.targets import TARGETS


class Driver(CudaDriver):
    """What this asks of PyTorch, it would ask of its CUDA device."""

    def __init__(self):
        super().__init__()
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def shortest(device):
    """Calls that have every kernel, and each with a barrier and without one, where it can be either."""
    seen = set()
    for call in one_of_each_plan(launches(), device):
        tensors = call.tensors("meta")
        passes = [(each, each.declare(tensors, device)) for each in call.passes.modes.values()]
        found = {(moved.kernel, moved.waits) for _, declared in passes for moved in declared.launches}
        if not found <= seen:
            seen |= found
            yield from ((call, each, declared) for each, declared in passes)


_, H200 = TARGETS["sm_90"]
driver.set_active(Driver())
for call, each, declared in shortest(H200):
    each.run(call.tensors("meta"), H200)
    for moved in declared.launches:
        grid = [*moved.grid, 1, 1][:3]
        print(json.dumps({"kernel": moved.kernel, "grid": grid, "waits": moved.waits}))
