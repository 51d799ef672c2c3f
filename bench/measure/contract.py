"""The contract of each mode: what a timed call of any provider does, so that all of them are compared at the same work.

A call is observed once, untimed (bench/measure/observed.py). What breaks its contract is refused; what only deviates,
as a library does whose kernels autograd knows nothing of, is written into the record and shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from bench.cases.case import Case
from bench.cases.operators import Inputs
from bench.measure.observed import CallLog


@dataclass(frozen=True)
class Contract:
    """One mode's: whether gradients are recorded meanwhile, and the passes over the data that it has."""

    grad_mode: bool | None  # None: a call has no forward, in which it would matter
    forward: bool
    backward: bool


CONTRACTS = {
    "fwd": Contract(grad_mode=True, forward=True, backward=False),
    "bwd": Contract(grad_mode=None, forward=False, backward=True),
    "fwd_bwd": Contract(grad_mode=True, forward=True, backward=True),
    "eval": Contract(grad_mode=False, forward=True, backward=False),
}
# The backends whose claim it is to be PyTorch's own operators, by the beginning of their names.
_PYTORCH = ("torch", "cudnn", "inductor")

# PyTorch's instance norm itself rearranges a channels-last x, and the gradient that arrives, before it begins.
_REARRANGED = {("instance_norm", "nhwc")}


def broken(case: Case, backend: str, inputs: Inputs, results: Mapping[str, Tensor], log: CallLog) -> str:
    """Returns what a call must not do, in one line that names it; "" if it keeps to the contract."""
    contract = CONTRACTS[case.mode]
    if not backend.startswith(_PYTORCH):
        if log.pytorchs:
            return f"runs PyTorch's {', '.join(log.pytorchs)} under the name of {backend}; backend() has to say torch"
    else:
        its_own = contract.forward + contract.backward if (case.op, case.layout) in _REARRANGED else 0
        copies = sum(tensor.numel() == inputs["x"].numel() for tensor in log.copied) - its_own
        if copies > 0:
            return f"copies {copies} tensors as large as x inside the timed call, which PyTorch's own operators do not"
    forwards = [name for name in log.pytorchs if "backward" not in name]
    if not contract.forward and forwards:
        return f"runs forward ({', '.join(forwards)}) in mode {case.mode}"
    if not contract.backward and (
        backwards := [name for name in log.operators if "norm" in name and "backward" in name]
    ):
        return f"runs backward ({', '.join(backwards)}) in mode {case.mode}"
    # An autograd function has grad mode off within, and gives its results a graph.
    if contract.grad_mode and log.grad_modes == {False} and not any(t.requires_grad for t in results.values()):
        return f"switches grad mode off, which mode {case.mode} has on"
    return ""


def deviations(case: Case, inputs: Inputs, results: Mapping[str, Tensor], log: CallLog) -> list[str]:
    """Returns in what else a call differs from the others of its mode."""
    found = []
    y = results.get("y")
    if CONTRACTS[case.mode].grad_mode and y is not None and not y.requires_grad:
        found.append("y has no graph for backward")
    if case.mode == "eval" and log.grad_modes == {True}:
        found.append("grad mode is on")
    if copies := sum(tensor.numel() == inputs["x"].numel() for tensor in log.copied):
        found.append(f"copies {copies} tensors as large as x")
    return found
