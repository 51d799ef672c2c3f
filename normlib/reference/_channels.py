"""Per-channel vectors beside (N, C, *)."""

from __future__ import annotations

import torch
from torch import Tensor


def channelwise(v: Tensor | None, like: Tensor, default: float) -> Tensor:
    """Returns a per-channel vector as float64 of shape (1, C, 1, ...)."""
    shape = [1, like.shape[1]] + [1] * (like.dim() - 2)
    if v is None:
        return torch.full(shape, default, dtype=torch.float64, device=like.device)
    return v.double().reshape(shape)
