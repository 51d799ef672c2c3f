"""Batch norm followed by noise, with the random words of normlib.philox."""

from __future__ import annotations

import torch
from torch import Tensor

from normlib.philox import noise_of
from normlib.reference.batch_norm import batch_norm


def noisy_batch_norm(
    x: Tensor,
    seed: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    per_unit: bool = False,
    ranges: tuple[float, float, float, float] = (0.5, 1.25, 0.1, 0.1),
    dy: Tensor | None = None,
) -> dict[str, Tensor]:
    """Noisy batch norm in training (Santurkar et al. 2018, section 2.1 and appendix A): y <- s y + m.

    seed: one int64; ranges: mean_limit, std_limit, mean_spread, std_spread. Returns what `batch_norm` does.
    """
    s, m = noise_of(x, seed, per_unit, list(ranges), torch.float64)
    out = batch_norm(x, weight, bias, eps, None if dy is None else s * dy.double())
    out["y"] = s * out["y"] + m
    return out
