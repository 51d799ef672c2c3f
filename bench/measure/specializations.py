"""The kernels that a case of normlib's compiles, from its launches alone: no GPU, no compiler, nothing runs.

Triton compiles a kernel once for every set of argument types, of integers that are 1 or that 16 divides, of pointers
that 16 divides, and of constants and launch options that a plan chose. Launchers run here on tensors without memory,
and what each of them would launch is written down in these terms.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import torch
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from bench.audit.calls import Launch
from bench.audit.passes import Tensors
from bench.cases.case import Case
from bench.fake_gpu import Driver, State, driven_by
from normlib.kernels.plan import Device

Specialization = tuple[Hashable, ...]
# The passes that a cell of each mode runs: backward alone needs what a forward pass has saved.
PASSES = {"fwd": ("fwd",), "bwd": ("fwd", "bwd"), "fwd_bwd": ("fwd", "bwd"), "eval": ("eval",)}


def kernels(case: Case, device: Device) -> frozenset[Specialization]:
    """Returns what Triton has to compile for a cell of this case on such a device; the same for cases that share it."""
    launch = Launch(case.op, case.shape, case.dtype, case.layout, (), case.options)
    return frozenset().union(*(_of_pass(launch, name, device) for name in PASSES[case.mode]))


@cache
def _of_pass(launch: Launch, name: str, device: Device) -> frozenset[Specialization]:
    with launched() as found, driven_by(Driver(State())):  # some launches ask for the stream
        launch.passes.modes[name].run(_tensors(launch), device)
    return frozenset(found)


@lru_cache(maxsize=1)  # for the passes of one call, which come one after another
def _tensors(launch: Launch) -> Tensors:
    return launch.tensors("meta")


@contextmanager
def launched() -> Iterator[list[Specialization]]:
    """Within, nothing is launched; yields what would have been, in order."""
    found: list[Specialization] = []

    def note(self: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        # The interpreter, which stands in the compiler's place where there is no GPU, keeps the decorator's arguments.
        general = getattr(self, "do_not_specialize", None) or getattr(self, "kwargs", {}).get("do_not_specialize") or ()
        kinds = (_kind(value, name not in general) for name, value in zip(self.arg_names, args, strict=False))
        named = ((k, _kind(v, True) if isinstance(v, torch.Tensor) else str(v)) for k, v in sorted(constants.items()))
        found.append((self.__name__, *kinds, *named))

    before = JITFunction.run, InterpretedFunction.run
    JITFunction.run = InterpretedFunction.run = note
    try:
        yield found
    finally:
        JITFunction.run, InterpretedFunction.run = before


def _kind(value: Any, special: bool) -> Hashable:
    """Returns what Triton tells arguments apart by."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, bool) or not isinstance(value, int):
        return type(value).__name__
    if special and value == 1:
        return 1
    return "int", abs(value) >= 2**31, special and value % 16 == 0
