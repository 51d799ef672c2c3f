"""The launches of a user's call of normlib, forward and backward through autograd, recorded on a fake GPU."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bench.cases.case import Case
from bench.cases.operators import Inputs, Operator
from bench.fake_gpu import recording
from normlib.kernels.plan import Device
from normlib.kernels.traffic import Traffic

# From a case to the call of its operator: called with the case's tensors by name, it gives y, or y and z.
ForwardOf = Callable[[Case], Callable[..., Any]]
# A pass of a call: its mode, and what runs it and returns its results.
Pass = tuple[str, Callable[[], tuple[torch.Tensor, ...]]]
# Gradients by the tensors that they are of. A residual's is dz where it differs from x's.
_GRADIENTS = {"x": "dx", "weight": "dw", "bias": "db"}


@dataclass(frozen=True)
class RecordedPass:
    """One direction of a call: the plan that its first launch follows, and what each of its launches moves."""

    mode: str  # as in bench.cases.case; `eval_bwd` is backward in evaluation
    plan: Any
    launches: tuple[Traffic, ...]

    @property
    def kind(self) -> str:
        """The kind of plan in a word or two."""
        return "one sweep" if self.mode.startswith("eval") else str(self.plan.kind)


def untouched(operator: Operator, case: Case, device: torch.device | str = "cpu") -> Inputs:
    """Returns tensors like the case's inputs; where nobody looks at it, memory of the CPU is never taken."""
    # Nothing is planned for values, and without memory only normal ones can be drawn.
    drawn = operator.drawn(replace(case, inputs="normal", offset=0.0), torch.device("meta"), 0)
    return {n: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device) for n, t in drawn.items()}


def passes(
    operator: Operator, case: Case, forward: ForwardOf, inputs: Inputs, without: Collection[str] = ()
) -> Iterator[Pass]:
    """Yields the passes of a call by mode, each to be run, once or more often, before the next one is asked for.

    `without`: tensors that the call is made without, and gradients that nobody wants.
    """
    tensors = {name: None if name in without else t.detach() for name, t in inputs.items() if name not in ("dy", "dz")}
    leaves = [
        t.requires_grad_()
        for name, t in tensors.items()
        if t is not None and _gradient_of(name, inputs) not in (None, *without)
    ]
    outputs: list[torch.Tensor] = []

    def run_forward(mode: str) -> tuple[torch.Tensor, ...]:
        found = forward(replace(case, mode=mode))(**tensors)
        outputs[:] = found if isinstance(found, tuple) else (found,)
        return tuple(outputs)

    def run_backward() -> tuple[torch.Tensor, ...]:
        given = [(y, inputs[name]) for y, name in zip(outputs, ("dy", "dz"), strict=False) if name not in without]
        return torch.autograd.grad([y for y, _ in given], leaves, [dy for _, dy in given], retain_graph=True)

    for mode, backward in (("fwd", "bwd"), ("eval", "eval_bwd")):
        evaluates = "eval" in operator.modes and tensors.get("running_mean") is not None
        if mode == "fwd" or evaluates:
            yield mode, partial(run_forward, mode)
            if leaves:
                yield backward, run_backward


def _gradient_of(name: str, inputs: Inputs) -> str | None:
    if name == "residual":
        return "dx" if "dz" in inputs else "dz"
    return _GRADIENTS.get(name)


def recorded(passes: Iterable[Pass], device: Device) -> list[RecordedPass]:
    """Returns what the passes launch on such a device, without running any kernel."""
    found = []
    with recording(device, lambda launch: (launch.plan, launch.traffic)) as launches:
        for mode, run in passes:
            launches.clear()
            run()
            if launches:
                found.append(RecordedPass(mode, launches[0][0], tuple(traffic for _, traffic in launches)))
    return found
