"""Layer normalization over the last dimension."""

from __future__ import annotations

from torch import Tensor

from bench.cases.case import Case
from bench.cases.operators import Forward, Functional, Inputs, Reference
from bench.cases.operators._rows import RowNorm
from normlib import reference


class LayerNorm(RowNorm):
    """Weight and bias; forward saves a mean and an rstd a row."""

    name = "layer_norm"
    short = "ln"
    eps = 1e-5
    has_bias = True
    statistics = 2

    def bind(self, case: Case, function: Functional) -> Forward:
        def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return function(x, case.shape[-1:], weight, bias, case.eps)

        return forward

    def reference(self, case: Case, inputs: Inputs) -> Reference:
        """y, dx, dw, db, mean, rstd in float64."""
        x, weight, bias, dy = (inputs[name] for name in ("x", "weight", "bias", "dy"))
        truth = reference.layer_norm(x, case.shape[1:], weight, bias, case.eps, dy)
        return {name: truth[name] for name in (*self.outputs("fwd_bwd"), *self.saved)}


OPERATOR = LayerNorm()
