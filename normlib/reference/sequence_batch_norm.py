"""Batch normalization over all steps of all sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normlib.reference.batch_norm import batch_norm


def sequence_batch_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    dy: Tensor | None = None,
    lengths: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Batch normalization in training of x (T, N, H), where every step of a sequence is a sample.

    Laurent et al. 2015, section 3. Returns what `batch_norm` returns, y and dx of x's shape and 0 in padding,
    which is what comes after the first lengths[n] steps of sequence n.
    """
    time, batch, _ = x.shape
    ends = torch.tensor([time] * batch if lengths is None else lengths, device=x.device)
    valid = torch.arange(time, device=x.device)[:, None] < ends
    found = batch_norm(x[valid], weight, bias, eps, None if dy is None else dy[valid])
    for name in ("y", "dx"):
        if name in found:
            padded = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
            padded[valid] = found[name]
            found[name] = padded
    return found
