"""var = E[x^2] - mean^2: one sweep over x, and the difference of two large numbers wherever the mean is large."""

from __future__ import annotations

from torch import Tensor

from bench.measure.providers._formulas import Formula


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(1, keepdim=True)
    return mean, (x * x).mean(1, keepdim=True) - mean * mean


PROVIDER = Formula("one_pass", statistics)
