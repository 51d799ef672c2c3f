"""Passes of the operators that give a pair, y and the residual stream z; of the others, those of _autograd.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.operators import Inputs
from bench.measure.providers import Outputs, Runnable, _autograd

# Called with the case's input tensors by name, dy and dz left out; gives y, or y and z.
Forward = Callable[..., Any]

# The norm that each of them applies to x + residual.
NORM_OF = {"layer_norm_add": "layer_norm", "rms_norm_add": "rms_norm"}

# The residual's gradient is x's, and is asked for as a model asks for it.
_GRADIENTS = {"x": "dx", "residual": "", "weight": "dw", "bias": "db"}


def bound(case: Case, functional: object) -> Forward:
    """As _autograd.bound; of a pair, the addition and then the norm, as a library without fused forms has them."""
    if case.op not in NORM_OF:
        return _autograd.bound(case, functional)
    norm = _autograd.bound(replace(case, op=NORM_OF[case.op]), functional)

    def add_and_normalize(x: Tensor, residual: Tensor, **parameters: Tensor) -> tuple[Tensor, Tensor]:
        z = x + residual
        return norm(z, **parameters), z

    return add_and_normalize


def runnable(
    case: Case, inputs: Inputs, forward: Forward, saved: Callable[[Inputs], Outputs] = lambda inputs: {}
) -> Runnable:
    """As _autograd.runnable; of a pair, with gradients that arrive at both."""
    if case.op not in NORM_OF:
        return _autograd.runnable(case, inputs, forward, saved)
    upstream = inputs["dy"], inputs["dz"]

    def backwards(pair: tuple[Tensor, Tensor], tensors: Inputs, again: bool) -> Outputs:
        names = [_GRADIENTS[name] for name in tensors]
        found = torch.autograd.grad(pair, tuple(tensors.values()), upstream, retain_graph=again)
        return {name: gradient for name, gradient in zip(names, found, strict=True) if name}

    def one_pass(tensors: Inputs) -> Outputs:
        y, z = forward(**tensors)
        return {"y": y, "z": z} | ({} if case.mode == "fwd" else backwards((y, z), tensors, again=False))

    mine = _leaves(inputs)
    if case.mode == "bwd":
        pair = forward(**mine)
        run: Callable[[], Outputs] = lambda: backwards(pair, mine, again=True)
    else:
        run = lambda: one_pass(mine)
    run()

    def outputs() -> Outputs:
        return one_pass(_leaves(inputs)) | (saved(inputs) if case.mode.startswith("fwd") else {})

    return Runnable(run, outputs)


def _leaves(inputs: Inputs) -> Inputs:
    """As _autograd has them: on the inputs' memory, and by `.data`, so that a caller may refill it."""
    return {name: inputs[name].data.requires_grad_() for name in _GRADIENTS if name in inputs}
