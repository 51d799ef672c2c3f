"""Launches for a GPU that is not there: all that Triton does in Python between call and device, and nothing after it.

Within `absent_gpu` the CPU's tensors take the kernels' path, with the plans of that GPU. Triton binds and specializes
the arguments of every launch and looks its kernel up, as it would on the device; what it would compile is noted and a
stand-in takes its place, so that nothing is compiled and nothing runs: results hold whatever the memory held.

It is no place for TRITON_INTERPRET, which has to be unset when triton is imported: the interpreter binds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from normlib import backend
from normlib.kernels import plan

H200 = plan.Device(132, l2=50 << 20, cooperative=True)
OPTIONS = ("num_warps", "launch_cooperative_grid")
# Triton keeps kernels by the device's number; no device has this one.
ABSENT = -1


@dataclass(frozen=True)
class Compilation:
    """What Triton would have compiled: a kernel, the constants that its plan chose, and what it was specialized on."""

    kernel: str
    plan: tuple[Any, ...]  # the kernel's constexpr arguments, and the options that change with a plan
    key: str  # all of it, as Triton tells kernels apart


class _Driver:
    """What a launch asks of the device's driver."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return ABSENT

    def get_current_stream(self, device: int) -> int:
        return 0


class _StandIn:
    """What a launch asks of a compiled kernel."""

    function = packed_metadata = None

    def launch_metadata(self, *_: Any) -> None:
        return None

    def run(self, *_: Any) -> None:
        return None


@contextmanager
def absent_gpu(device: plan.Device = H200) -> Iterator[list[Compilation]]:
    """Within, `normlib` on CPU tensors plans and launches for `device`; yields what it would have compiled."""
    found: list[Compilation] = []
    functions: list[Any] = []

    def note(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        """Triton's own hook: asked before it compiles, and a True stops it."""
        function = fn.jit_function
        functions.append(function)
        function.cache_key  # noqa: B018  finds the globals that the kernel uses, which every launch looks through
        chosen = [compile["constants"][i,] for i, p in enumerate(function.params) if p.is_constexpr]
        chosen += [compile[option] for option in OPTIONS]
        found.append(Compilation(function.__name__, tuple(chosen), key))
        function.device_caches[ABSENT][0][key] = _StandIn()
        return True

    before = driver._active, knobs.runtime.jit_cache_hook
    driver.set_active(_Driver())
    knobs.runtime.jit_cache_hook = note
    try:
        with planned_for(device):
            yield found
    finally:
        driver.set_active(before[0])
        knobs.runtime.jit_cache_hook = before[1]
        for function in functions:
            function.device_caches.pop(ABSENT, None)


@contextmanager
def planned_for(device: plan.Device) -> Iterator[None]:
    """Within, `normlib` on CPU tensors takes the kernels' path and plans for this device."""
    before = backend.CPU_RUNS_KERNELS, plan.INTERPRETER
    backend.CPU_RUNS_KERNELS, plan.INTERPRETER = True, device
    try:
        yield
    finally:
        backend.CPU_RUNS_KERNELS, plan.INTERPRETER = before
