"""GPUs that need not be here, by the names that the audit has for them: what to compile for."""

from __future__ import annotations

from triton.backends.compiler import GPUTarget

from normlib.kernels.plan import Device

# A100, H200, B200 and MI300X: multiprocessors (compute units) and L2 as their data sheets name them, and what
# kernels/host.py makes of such a device.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), Device(108, l2=40 << 20, cooperative=True)),
    "sm_90": (GPUTarget("cuda", 90, 32), Device(132, l2=50 << 20, cooperative=True)),
    "sm_100": (GPUTarget("cuda", 100, 32), Device(148, l2=126 << 20, cooperative=True)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), Device(304, 64, None, l2=4 << 20)),
}
