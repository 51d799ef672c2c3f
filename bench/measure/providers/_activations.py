"""The operators with a ReLU behind batch norm: what a library without fused forms runs for them, and what one with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from bench.cases.case import Case
from bench.cases.operators.batch_norm import MOMENTUM
from bench.measure.providers import _pairs
from bench.measure.providers._pairs import Forward

# The norm of each of them.
NORM_OF = {"batch_norm_relu": "batch_norm", "batch_norm_add_relu": "batch_norm"}


def bound(case: Case, functional: object) -> Forward:
    """As _pairs.bound; of these operators the norm, the residual's addition and the ReLU one after another."""
    if case.op not in NORM_OF:
        return _pairs.bound(case, functional)
    norm = _pairs.bound(replace(case, op=NORM_OF[case.op]), functional)

    def forward(x: Tensor, residual: Tensor | None = None, **others: Tensor) -> Tensor:
        y: Tensor = norm(x, **others)
        return (y if residual is None else y + residual).relu()

    return forward


def fused(case: Case, functional: Any) -> Forward:
    """The norm that does it all, from a module with normlib.functional's signatures."""

    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        residual: Tensor | None = None,
    ) -> Tensor:
        arguments = (running_mean, running_var, weight, bias, case.mode != "eval", MOMENTUM, case.eps)
        y: Tensor = functional.batch_norm(x, *arguments, activation="relu", residual=residual)
        return y

    return forward
