"""The GPUs that the audit compiles for, which need not be here."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from triton.backends.compiler import GPUTarget

from bench.fake_gpu import COMPILED, H200, H200_TARGET, compiling_for
from normlib.kernels.plan import Device
from normlib.kernels.traffic import KernelLaunch

# A100, H200, B200 and MI300X: multiprocessors (compute units) and L2 as their data sheets name them, and what
# kernels/host.py makes of such a device.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), Device(108, l2=40 << 20, cooperative=True)),
    "sm_90": (H200_TARGET, H200),
    "sm_100": (GPUTarget("cuda", 100, 32), Device(148, l2=126 << 20, cooperative=True)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), Device(304, 64, None, l2=4 << 20)),
}


def compiling(name: str) -> AbstractContextManager[list[tuple[KernelLaunch, Any]]]:
    """As bench.fake_gpu.compiling_for, for one of these."""
    return compiling_for(*TARGETS[name], COMPILED - 1 - list(TARGETS).index(name))
