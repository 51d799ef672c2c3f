"""RMS normalization of a residual stream: x is added to it, and the sum comes back beside its norm."""

from __future__ import annotations

from bench.cases.operators import rms_norm
from bench.cases.operators._rows import RowNormAdd


class RMSNormAdd(RowNormAdd):
    """The cases, statistics and parameters of rms_norm."""

    name = "rms_norm_add"
    short = "rms_add"


OPERATOR = RMSNormAdd(rms_norm.OPERATOR)
