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
from bench.measure.providers._autograd import GRADIENTS
from normlib.kernels.plan import Device
from normlib.kernels.traffic import Traffic

# From a case to the call of its operator: called with the case's tensors by name, it gives y, or y and z.
ForwardOf = Callable[[Case], Callable[..., Any]]
# A pass of a call: its mode, and what runs it and returns its results by name.
Pass = tuple[str, Callable[[], dict[str, torch.Tensor]]]


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
    leaves = {
        GRADIENTS[name]: t.requires_grad_()
        for name, t in tensors.items()
        if name in GRADIENTS and t is not None and _left_out_as(name, inputs) not in without
    }
    outputs: dict[str, torch.Tensor] = {}

    def run_forward(mode: str) -> dict[str, torch.Tensor]:
        found = forward(replace(case, mode=mode))(**tensors)
        outputs.update(zip(operator.results, found if isinstance(found, tuple) else (found,), strict=True))
        return dict(outputs)

    def run_backward() -> dict[str, torch.Tensor]:
        pairs = zip(outputs.values(), ("dy", "dz"), strict=False)
        given = [(y, inputs[name]) for y, name in pairs if name not in without]
        upstream = [dy for _, dy in given]
        found = torch.autograd.grad([y for y, _ in given], [*leaves.values()], upstream, retain_graph=True)
        return dict(zip(leaves, found, strict=True))

    for mode, backward in (("fwd", "bwd"), ("eval", "eval_bwd")):
        evaluates = "eval" in operator.modes and tensors.get("running_mean") is not None
        if mode == "fwd" or evaluates:
            yield mode, partial(run_forward, mode)
            if leaves:
                yield backward, run_backward


def _left_out_as(name: str, inputs: Inputs) -> str:
    """Returns the name of a tensor's gradient in `without`: a residual's is dz where it differs from x's."""
    if name == "residual":
        return "dx" if "dz" in inputs else "dz"
    return GRADIENTS[name]


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
