"""Runnables for providers that are a function of tensors with autograd behind it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.operators import Forward, Functional, Inputs, operators
from bench.measure.providers import Outputs, Runnable, Unsupported

_GRADIENTS = {"x": "dx", "residual": "dresidual", "weight": "dw", "bias": "db"}
_BUFFER = "running_"


def bound(case: Case, functional: object) -> Forward:
    """The case's operator from a module with normlib.functional's names and signatures, its scalars bound."""
    function: Functional | None = getattr(functional, case.op, None)
    if function is None:
        raise Unsupported(f"has no {case.op}")
    return operators()[case.op].bind(case, function)


def runnable(
    case: Case, inputs: Inputs, forward: Forward, saved: Callable[[Inputs], Outputs] = lambda inputs: {}
) -> Runnable:
    """A cell of the case's mode: forward in training mode saves for backward, evaluation runs without gradients.

    `saved` gives the statistics that a training forward of these inputs saves, where they can be had.

    Everything runs once here, so that a compiler's work is part of building. Backward alone is timed on a graph that
    is built once: its values are those of the inputs at that time, `outputs` always begins anew.
    """
    dy = inputs["dy"]

    def evaluate(tensors: Inputs) -> Outputs:
        with torch.no_grad():
            return {"y_eval": forward(**tensors)}

    def forwards(tensors: Inputs) -> Outputs:
        y = forward(**tensors)
        return {"y": y, **{name: tensor for name, tensor in tensors.items() if name.startswith(_BUFFER)}}

    def backwards(y: Tensor, tensors: Inputs, again: bool) -> Outputs:
        wrt = {tensors[name]: gradient for name, gradient in _GRADIENTS.items() if name in tensors}
        return dict(zip(wrt.values(), torch.autograd.grad(y, tuple(wrt), dy, retain_graph=again), strict=True))

    def both(tensors: Inputs) -> Outputs:
        found = forwards(tensors)
        return found | backwards(found["y"], tensors, again=False)

    passes: dict[str, Callable[[Inputs], Outputs]] = {"eval": evaluate, "fwd": forwards, "bwd": both, "fwd_bwd": both}
    one_pass = passes[case.mode]
    mine = _tensors(inputs, case.mode)
    if case.mode == "bwd":
        y = forward(**mine)
        run: Callable[[], Outputs] = lambda: backwards(y, mine, again=True)
    else:
        run = lambda: one_pass(mine)
    run()

    def outputs() -> Outputs:
        return one_pass(_tensors(inputs, case.mode)) | (saved(inputs) if case.mode.startswith("fwd") else {})

    return Runnable(run, outputs)


def _tensors(inputs: Inputs, mode: str) -> Inputs:
    """The inputs as a model has them: leaves that require gradients, on the inputs' memory; buffers of their own.

    `.data` and not `.detach()`: a graph that was built once must not be refused after a caller refills the inputs.
    """
    buffers = {name: tensor.clone() for name, tensor in inputs.items() if name.startswith(_BUFFER)}
    tensors = {name: tensor.data for name, tensor in inputs.items() if name not in (*buffers, "dy")}
    if mode != "eval":
        # All but integers, such as a seed.
        tensors = {name: t.requires_grad_(t.is_floating_point()) for name, t in tensors.items()}
    return tensors | buffers
