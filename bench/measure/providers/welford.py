"""Welford's updates, merged pairwise by Chan's formula: one sweep, as accurate as two, and a float32 mean all the same.

Welford, "Note on a method for calculating corrected sums of squares and products" (1962); Chan, Golub and LeVeque
(1979), equations 2.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.measure.providers._formulas import Formula


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, m2, count = x, torch.zeros_like(x), torch.ones_like(x)
    while mean.shape[1] > 1:
        if mean.shape[1] % 2:  # an empty set makes the last pair whole
            mean, m2, count = (torch.nn.functional.pad(t, (0, 1)) for t in (mean, m2, count))
        (mean_a, mean_b), (m2_a, m2_b), (n_a, n_b) = ((t[:, ::2], t[:, 1::2]) for t in (mean, m2, count))
        count = n_a + n_b
        delta = torch.where(n_b > 0, mean_b - mean_a, 0.0)
        mean, m2 = mean_a + delta * (n_b / count), m2_a + m2_b + delta * delta * (n_a * n_b / count)
    return mean, m2 / count


PROVIDER = Formula("welford", statistics)
