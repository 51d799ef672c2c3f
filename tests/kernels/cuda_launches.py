"""Every kernel launched as on an H200, by Triton's own driver, on memory that nobody touches: run with absent_cuda.c.

Prints what the launches were declared to be, one JSON object a launch.
"""

import json

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver

from bench.audit.calls import calls, one_of_each_plan
from bench.audit.targets import TARGETS
from bench.fake_gpu import driven_by, recording


class Driver(CudaDriver):
    """Stands in for the questions that a launch asks PyTorch about its CUDA device."""

    def __init__(self):
        super().__init__()
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def shortest(device):
    """Calls that have every kernel, and each with a barrier and without one, where it can be either."""
    seen = set()
    for call in one_of_each_plan(calls(), device):
        found = {(moved.kernel, moved.waits) for one in call.recorded(device) for moved in one.launches}
        if not found <= seen:
            seen |= found
            yield call


def launched(launch):
    launch.run()
    return launch.traffic


_, H200 = TARGETS["sm_90"]
chosen = list(shortest(H200))
with recording(H200, launched) as found, driven_by(Driver()):
    for call in chosen:
        for _, run in call.passes():
            run()
for moved in found:
    print(json.dumps({"kernel": moved.kernel, "grid": [*moved.grid, 1, 1][:3], "waits": moved.waits}))
