"""Root mean square normalization over the last dimension, without a bias, which no peer has."""

from __future__ import annotations

from torch import Tensor

from bench.cases.case import Case
from bench.cases.operators import Forward, Functional, Inputs, Reference
from bench.cases.operators._rows import RowNorm
from normlib import reference


class RMSNorm(RowNorm):
    """Weight alone; forward saves an rstd a row."""

    name = "rms_norm"
    short = "rms"
    eps = 1e-6
    has_bias = False
    saved = ("rstd",)
    statistics = 1

    def bind(self, case: Case, function: Functional) -> Forward:
        def forward(x: Tensor, weight: Tensor) -> Tensor:
            return function(x, case.shape[-1:], weight, case.eps)

        return forward

    def reference(self, case: Case, inputs: Inputs) -> Reference:
        """y, dx, dw, rstd in float64."""
        truth = reference.rms_norm(inputs["x"], case.shape[1:], inputs["weight"], None, case.eps, inputs["dy"])
        return {name: truth[name] for name in (*self.outputs("fwd_bwd"), *self.saved)}


OPERATOR = RMSNorm()
