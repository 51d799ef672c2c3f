"""The operators that PyTorch has none of, put together from its own: what a model runs without these kernels.

Same names and signatures as in functional.py. Without a GPU they serve the layers; in bench/ they are what PyTorch and
torch.compile run.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F


def _wide(x: Tensor) -> torch.dtype:
    """What x is computed in: its own dtype, or float32 for 16 bits."""
    return torch.promote_types(x.dtype, torch.float32)


def batch_renorm(
    input: Tensor,
    running_mean: Tensor,
    running_std: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.01,
    eps: float = 1e-3,
    rmax: float | Tensor = 3.0,
    dmax: float | Tensor = 5.0,
) -> Tensor:
    """`functional.batch_renorm`: batch norm with another weight and bias, after the batch's statistics."""
    wide = _wide(input)
    running = [t.to(wide) for t in (running_mean, running_std)]
    w, b = (None if t is None else t.to(wide) for t in (weight, bias))
    if not training:
        return F.batch_norm(input, running[0], running[1].square(), w, b, False, 0.0, 0.0)
    if input.numel() == 0:
        return F.batch_norm(input, None, None, w, b, True, momentum, eps)
    dims = [d for d in range(input.dim()) if d != 1]
    variance, mean = torch.var_mean(input.detach().to(wide), dims, correction=0)
    std = (variance + eps).sqrt()
    most_r, most_d = cast(Any, rmax), cast(Any, dmax)  # either may be a tensor
    r = (std / running[1]).clamp(min=1 / most_r).clamp(max=most_r)
    d = ((mean - running[0]) / running[1]).clamp(min=-most_d).clamp(max=most_d)
    scale, shift = (r, d) if w is None else (w * r, w * d)
    y = F.batch_norm(input, None, None, scale, shift if b is None else shift + b, True, momentum, eps)
    with torch.no_grad():
        for buffer, old, new in zip((running_mean, running_std), running, (mean, std), strict=True):
            buffer.copy_(torch.lerp(old, new, momentum))
    return y
