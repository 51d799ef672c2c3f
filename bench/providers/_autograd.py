"""Runnables for providers that are a function of tensors with autograd behind it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.case import Case
from bench.operators import Inputs
from bench.operators.batch_norm import MOMENTUM
from bench.providers import Outputs, Runnable, Unsupported

# Called with the case's input tensors by name, dy left out; gives y.
Forward = Callable[..., Tensor]
# torch.nn.functional's batch_norm, layer_norm or rms_norm, or one with the same signature.
Functional = Callable[..., Tensor]

_GRADIENTS = {"x": "dx", "residual": "dresidual", "weight": "dw", "bias": "db"}
_BUFFERS = ("running_mean", "running_var")


def bound(case: Case, functional: object) -> Forward:
    """The case's operator from a module with torch.nn.functional's names and signatures, its scalars bound."""
    normalized_shape, eps, training = case.shape[-1:], case.eps, case.mode != "eval"
    function: Functional | None = getattr(functional, case.op, None)
    if function is None:
        raise Unsupported(f"has no {case.op}")

    def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
        return function(x, running_mean, running_var, weight, bias, training, MOMENTUM, eps)

    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return function(x, normalized_shape, weight, bias, eps)

    def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
        return function(x, normalized_shape, weight, eps)

    forwards: dict[str, Forward] = {"batch_norm": batch_norm, "layer_norm": layer_norm, "rms_norm": rms_norm}
    if case.op not in forwards:
        raise Unsupported(f"nobody has said how {case.op} is called")
    return forwards[case.op]


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
        return {"y": y, **{name: tensors[name] for name in _BUFFERS if name in tensors}}

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
    tensors = {name: tensor.data for name, tensor in inputs.items() if name not in (*_BUFFERS, "dy")}
    if mode != "eval":
        tensors = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    return tensors | {name: inputs[name].clone() for name in _BUFFERS if name in inputs}
