"""Cells of providers that are a function of tensors, which autograd differentiates."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.cases.case import Case
from bench.cases.operators import Forward, Inputs, operators
from bench.measure.providers import Outputs, Runnable, Unsupported

GRADIENTS = {"x": "dx", "residual": "dresidual", "weight": "dw", "bias": "db"}
_BUFFER = "running_"


def bound(case: Case, *libraries: object, fused: bool = False) -> Forward:
    """The case's operator from the first library that has it under normlib.functional's name and signature.

    A fused operator is its norm's function where the library has `fused` forms, else that norm and torch's operators.
    """
    operator = operators()[case.op]
    name = operator.plain.name
    function = next((getattr(library, name) for library in libraries if hasattr(library, name)), None)
    if function is None:
        raise Unsupported(f"has no {name}")
    return operator.bind(case, function) if fused else operator.unfused(operator.plain.bind(case, function))


def runnable(case: Case, inputs: Inputs, forward: Forward) -> Runnable:
    """A cell of the case's mode: forward in training mode saves for backward, evaluation runs without gradients.

    Everything runs once here, so that a compiler's work is part of building. Backward by itself is timed on a graph
    that is built once: its values are those of the inputs at that time, `outputs` always begins anew.
    """
    operator = operators()[case.op]
    upstream = tuple(inputs[name] for name in ("dy", "dz") if name in inputs)  # dz where forward returns y and z
    wanted = operator.outputs(case.mode)

    def backward(results: Outputs, tensors: Inputs, again: bool) -> Outputs:
        leaves = {gradient: tensors[name] for name, gradient in GRADIENTS.items() if name in tensors}
        roots = tuple(results[name] for name in operator.results)
        found = torch.autograd.grad(roots, tuple(leaves.values()), upstream, retain_graph=again)
        # With z the residual's gradient is x's: a model computes both, the operator names one.
        return {name: gradient for name, gradient in zip(leaves, found, strict=True) if name in wanted}

    def forwards(tensors: Inputs) -> Outputs:
        if case.mode == "eval":
            with torch.no_grad():
                return {"y_eval": forward(**tensors)}
        y = forward(**tensors)
        results = dict(zip(operator.results, y if isinstance(y, tuple) else (y,), strict=True))
        return results | {name: tensor for name, tensor in tensors.items() if name.startswith(_BUFFER)}

    def one_pass(tensors: Inputs) -> Outputs:
        found = forwards(tensors)
        return found | backward(found, tensors, again=False) if case.mode.endswith("bwd") else found

    mine = leaves_of(inputs, case.mode)
    if case.mode == "bwd":
        results = forwards(mine)
        run: Callable[[], Outputs] = lambda: backward(results, mine, again=True)
    else:
        run = lambda: one_pass(mine)
    run()
    return Runnable(run, lambda: one_pass(leaves_of(inputs, case.mode)))


def leaves_of(inputs: Inputs, mode: str) -> Inputs:
    """The inputs as a model has them: leaves that require gradients, on the inputs' memory; buffers of their own.

    `.data` and not `.detach()`: a graph that was built once must not be refused after a caller refills the inputs.
    """

    def leaf(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name.startswith(_BUFFER):
            return tensor.clone()
        # Integers, such as a seed, have no gradients.
        return tensor.data.requires_grad_(mode != "eval" and tensor.is_floating_point())

    return {name: leaf(name, tensor) for name, tensor in inputs.items() if name not in ("dy", "dz")}
