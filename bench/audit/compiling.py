"""The launches stopped after compilation: launchers run as on a GPU, on tensors without memory, and nothing starts.

So what is inspected is what a user's call would compile: same plan, same specialization.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from bench.audit.targets import TARGETS
from bench.fake_gpu import ABSENT, driven_by
from normlib.kernels.numerics import INTERPRETED

# Triton keeps kernels by device, and no device, real or absent, may find these: none has this number or a lower one.
NUMBER = ABSENT - 1


@dataclass(frozen=True)
class _NoDevice:
    """A Triton driver for a target that is not there: enough of one to compile."""

    target: GPUTarget
    number: int

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling(name: str) -> Iterator[list[tuple[str, Any]]]:
    """Within, launching a kernel compiles it for the target and stops there; yields (name, kernel) pairs."""
    with compiling_for(TARGETS[name][0], NUMBER - 1 - list(TARGETS).index(name)) as found:
        yield found


@contextmanager
def compiling_for(target: GPUTarget, number: int = NUMBER) -> Iterator[list[tuple[str, Any]]]:
    """As `compiling`, for any target; `number` is that of the device, and each target of a process has its own."""
    if INTERPRETED.value:
        raise RuntimeError("an interpreting process compiles nothing: unset TRITON_INTERPRET")
    found: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found.append((self.__name__, kernel))
        return kernel

    JITFunction.run = compile_only
    try:
        with driven_by(_NoDevice(target, number)):
            yield found
    finally:
        JITFunction.run = run
