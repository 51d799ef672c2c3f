"""The kernels that a case of normlib's compiles, found from its launches only: no GPU, no compiler, nothing runs.

Triton compiles a kernel once for every set of argument types, of integers that are 1 or that 16 divides, of pointers
that 16 divides, and of constants and launch options that a plan chose. What each launch of the case would be told apart
by is written down in these terms.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any

import torch

from bench.cases.case import Case
from bench.cases.operators import operators
from bench.fake_gpu import recording
from bench.measure.launches import passes, untouched
from bench.measure.providers.normlib import forward_of
from normlib.kernels.plan import Device
from normlib.kernels.traffic import KernelLaunch

Specialization = tuple[Hashable, ...]
# The passes that a cell of each mode runs: backward by itself needs what a forward pass has saved.
PASSES = {"fwd": ("fwd",), "bwd": ("fwd", "bwd"), "fwd_bwd": ("fwd", "bwd"), "eval": ("eval",)}


def kernels(case: Case, device: Device) -> frozenset[Specialization]:
    """Returns what Triton has to compile for a cell of this case on such a device; the same for cases that share it."""
    of_problem = _by_mode(case.problem, device)
    return frozenset().union(*(of_problem[mode] for mode in PASSES[case.mode]))


@cache
def _by_mode(problem: Case, device: Device) -> Mapping[str, frozenset[Specialization]]:
    operator, found = operators()[problem.op], {}
    with recording(device, _specialization) as launches:
        for mode, run in passes(operator, problem, forward_of, untouched(operator, problem)):
            launches.clear()
            run()
            found[mode] = frozenset(launches)
    return found


def _specialization(launch: KernelLaunch) -> Specialization:
    # The interpreter, which stands in the compiler's place where there is no GPU, keeps the decorator's arguments.
    kernel = launch.kernel
    general = getattr(kernel, "do_not_specialize", None) or getattr(kernel, "kwargs", {}).get("do_not_specialize") or ()
    named = zip(kernel.arg_names, launch.arguments, strict=False)
    kinds = (_kind(value, name not in general) for name, value in named)
    constants = sorted(launch.constants.items())
    return (
        kernel.__name__,
        *kinds,
        *((k, _kind(v, True) if isinstance(v, torch.Tensor) else str(v)) for k, v in constants),
    )


def _kind(value: Any, special: bool) -> Hashable:
    """Returns what Triton tells arguments apart by."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, bool) or not isinstance(value, int):
        return type(value).__name__
    if special and value == 1:
        return 1
    return "int", abs(value) >= 2**31, special and value % 16 == 0
