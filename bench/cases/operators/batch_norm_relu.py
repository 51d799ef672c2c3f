"""relu(batch_norm(x)), in one operator."""

from __future__ import annotations

from bench.cases.operators._relu import BatchNormRelu

OPERATOR = BatchNormRelu("batch_norm_relu", "bn_relu", adds=False)
