"""relu(batch_norm(x) + residual), in one operator: the end of a residual block."""

from __future__ import annotations

from bench.cases.operators._relu import BatchNormRelu

OPERATOR = BatchNormRelu("batch_norm_add_relu", "bn_add_relu", adds=True)
