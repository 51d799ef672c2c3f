"""A GPU that is not there: calls of `normlib` on CPU tensors take the kernels' path, with the plans of that GPU.

Three contexts say what becomes of their launches. `recording` runs nothing and notes each launch as its launcher states
it. `compiling_for` compiles each for a target, as the device would: same plan, same specialization. `absent_gpu` runs
all that Triton does in Python between call and device: it binds and specializes the arguments of every launch and looks
its kernel up; what it would compile is noted and a stand-in takes its place. In all of them results hold whatever the
memory held, and large tensors cost nothing, since nobody touches them.

TRITON_INTERPRET must be unset when triton is imported for the latter two: the interpreter compiles and binds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from normlib import dispatch
from normlib.kernels import host as counters
from normlib.kernels import plan
from normlib.kernels.numerics import INTERPRETED
from normlib.kernels.traffic import KernelLaunch, observed

H200 = plan.Device(132, l2=50 << 20, cooperative=True)
H200_TARGET = GPUTarget("cuda", 90, 32)
OPTIONS = ("num_warps", "launch_cooperative_grid")
# Triton keeps kernels by the device's number. No device has these, and what was compiled for one is not for another.
ABSENT, COMPILED = -1, -2

Noted = TypeVar("Noted")


@dataclass(frozen=True)
class Compilation:
    """A compilation that Triton would have made: kernel, constants chosen by its plan, and specializations."""

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
        """As normlib.kernels.host.capturing."""
        return self.capturing


class Driver:
    """The methods of a device's driver that a launch calls."""

    def __init__(self, state: State, target: GPUTarget = H200_TARGET, number: int = ABSENT) -> None:
        self._state, self._target, self._number = state, target, number

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._number

    def get_current_stream(self, device: int) -> int:
        return self._state.stream


class _StandIn:
    """The attributes of a compiled kernel that a launch uses."""

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
def planned_for(device: plan.Device) -> Iterator[None]:
    """Within, `normlib` on CPU tensors takes the kernels' path and plans for this device."""
    before = dispatch.CPU_RUNS_KERNELS, plan.INTERPRETER
    dispatch.CPU_RUNS_KERNELS, plan.INTERPRETER = True, device
    try:
        yield
    finally:
        dispatch.CPU_RUNS_KERNELS, plan.INTERPRETER = before


@contextmanager
def recording(device: plan.Device, note: Callable[[KernelLaunch], Noted]) -> Iterator[list[Noted]]:
    """Within, nothing is launched unless `note` does it; yields what `note` returns of each launch, in order."""
    found: list[Noted] = []
    with driven_by(Driver(State())), planned_for(device), observed(lambda launch: found.append(note(launch))):
        yield found


@contextmanager
def compiling_for(
    target: GPUTarget, device: plan.Device, number: int = COMPILED
) -> Iterator[list[tuple[KernelLaunch, Any]]]:
    """Within, a launch compiles its kernel for the target and stops there; yields the launches with their kernels.

    `number` is that of the device, and each target of a process has its own.
    """
    if INTERPRETED.value:
        raise RuntimeError("an interpreting process compiles nothing: unset TRITON_INTERPRET")
    compiled = recording(device, lambda launch: (launch, launch.run(warmup=True)))
    with compiled as found, driven_by(Driver(State(), target, number)):
        yield found


@contextmanager
def absent_gpu(device: plan.Device = H200, state: State | None = None) -> Iterator[list[Compilation]]:
    """Within, Triton does all that it does in Python for a launch; yields what it would have compiled.

    Which stream is current, and whether a CUDA graph is captured there, is whatever the state says.
    """
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
