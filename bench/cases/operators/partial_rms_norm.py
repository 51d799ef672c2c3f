"""RMS normalization by the first sixteenth of each row, without a bias."""

from __future__ import annotations

from bench.cases.case import Case
from bench.cases.operators import Inputs, Reference
from bench.cases.operators.rms_norm import RMSNorm
from normlib import reference


class PartialRMSNorm(RMSNorm):
    """The cases and parameters of rms_norm, with the default `partial`."""

    name = "partial_rms_norm"
    short = "prms"

    def reference(self, case: Case, inputs: Inputs) -> Reference:
        """y, dx, dw, rstd in float64."""
        truth = reference.partial_rms_norm(inputs["x"], case.shape[1:], inputs["weight"], None, case.eps, inputs["dy"])
        return {name: truth[name] for name in (*self.outputs("fwd_bwd"), *self.saved)}


OPERATOR = PartialRMSNorm()
