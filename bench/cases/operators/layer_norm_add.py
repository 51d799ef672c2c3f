"""Layer normalization of a residual stream: x is added to it, and the sum comes back beside its norm."""

from __future__ import annotations

from bench.cases.operators import layer_norm
from bench.cases.operators._rows import RowNormAdd


class LayerNormAdd(RowNormAdd):
    """The cases, statistics and parameters of layer_norm."""

    name = "layer_norm_add"
    short = "ln_add"


OPERATOR = LayerNormAdd(layer_norm.OPERATOR)
