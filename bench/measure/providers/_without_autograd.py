"""Cells of libraries whose forward and backward are two functions without autograd.

Autograd's own overhead is none of theirs, so the figure is the best that they can show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.cases.case import Case
from bench.cases.operators import Inputs
from bench.measure.providers import Outputs, Runnable

# Called with the case's tensors by name; returns what the mode's forward computes, and what backward is to take.
Forward = Callable[[Inputs], tuple[Outputs, Any]]
# Called with the tensors and with that; returns the gradients by name.
Backward = Callable[[Inputs, Any], Outputs]


def runnable(case: Case, inputs: Inputs, forward: Forward, backward: Backward) -> Runnable:
    """A cell of the case's mode. Everything runs once here, so that a compiler's work is part of building."""

    def one_pass(tensors: Inputs) -> Outputs:
        found, saved = forward(tensors)
        return found | backward(tensors, saved) if case.mode.endswith("bwd") else found

    def with_own_buffers() -> Inputs:
        return {name: t.clone() if name.startswith("running_") else t for name, t in inputs.items()}

    mine = with_own_buffers()
    run: Callable[[], Outputs] = lambda: one_pass(mine)
    run()
    if case.mode == "bwd":
        _, saved = forward(mine)
        run = lambda: backward(mine, saved)
    return Runnable(run, lambda: one_pass(with_own_buffers()))
