"""Launches for a GPU that is not there: all that Triton does in Python between call and device, and nothing after it.

Within `absent_gpu` the CPU's tensors take the kernels' path, with the plans of that GPU. Triton binds and specializes
the arguments of every launch and looks its kernel up, as it would on the device; what it would compile is noted and a
stand-in takes its place, so that nothing is compiled and nothing runs: results hold whatever the memory held. Which
stream is current, and whether a CUDA graph is captured there, is whatever `State` says.

It is no place for TRITON_INTERPRET, which has to be unset when triton is imported: the interpreter binds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from normlib import dispatch
from normlib.kernels import counters, plan

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


@dataclass
class State:
    """The state of the absent GPU, and the kernels launched on it if `launched` is a list."""

    stream: int = 0  # the handle of the current one
    capturing: bool = False
    launched: list[str] | None = field(default=None, kw_only=True)  # names of kernels, appended to

    def is_capturing(self, device: torch.device) -> bool:
        """As normlib.kernels.counters.capturing."""
        return self.capturing


class Driver:
    """What a launch asks of the device's driver."""

    def __init__(self, state: State) -> None:
        self._state = state

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return ABSENT

    def get_current_stream(self, device: int) -> int:
        return self._state.stream


class _StandIn:
    """What a launch asks of a compiled kernel."""

    function = packed_metadata = None

    def __init__(self, name: str, state: State) -> None:
        self._name, self._launched = name, state.launched

    def launch_metadata(self, *_: Any) -> None:
        return None

    def run(self, *_: Any) -> None:
        if self._launched is not None:
            self._launched.append(self._name)


@contextmanager
def driven_by(stand_in: Any) -> Iterator[None]:
    """Within, Triton asks this for device and stream, in place of the driver that it has or would look for."""
    active = driver._active  # None until somebody asks: `driver.active` would look for a GPU's driver and raise
    driver.set_active(stand_in)
    try:
        yield
    finally:
        driver.set_active(active)


@contextmanager
def absent_gpu(device: plan.Device = H200, state: State | None = None) -> Iterator[list[Compilation]]:
    """Within, `normlib` on CPU tensors plans and launches for `device`; yields what it would have compiled."""
    state = state or State()
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
        function.device_caches[ABSENT][0][key] = _StandIn(function.__name__, state)
        return True

    hook, asked = knobs.runtime.jit_cache_hook, counters.capturing
    knobs.runtime.jit_cache_hook, counters.capturing = note, state.is_capturing
    try:
        with driven_by(Driver(state)), planned_for(device):
            yield found
    finally:
        knobs.runtime.jit_cache_hook, counters.capturing = hook, asked
        for function in functions:
            function.device_caches.pop(ABSENT, None)


@contextmanager
def planned_for(device: plan.Device) -> Iterator[None]:
    """Within, `normlib` on CPU tensors takes the kernels' path and plans for this device."""
    before = dispatch.CPU_RUNS_KERNELS, plan.INTERPRETER
    dispatch.CPU_RUNS_KERNELS, plan.INTERPRETER = True, device
    try:
        yield
    finally:
        dispatch.CPU_RUNS_KERNELS, plan.INTERPRETER = before
