"""The steps of synchronized batch norm in PyTorch's operators, for CPU tensors where no kernel runs.

The same functions as in kernels/batch_norm/sync.py, with the same messages, computed in float64 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normlib.kernels.host import dense, statistics_dtype


def _columns(v: Tensor, like: Tensor) -> Tensor:
    """Returns a per-channel vector as float64 of shape (1, C, 1, ...)."""
    return v.double().view(1, -1, *[1] * (like.dim() - 2))


def _others(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


def _pair(value: Tensor, dtype: torch.dtype) -> list[Tensor]:
    high = value.to(dtype)
    low = torch.where(high.isfinite(), value - high, 0.0)
    return [high, low.to(dtype)]


def _in_layout_of(x: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(dense(x)[0]).copy_(value)


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    return x.double() - _columns(mean.double().sum(0), x)


def moments(x: Tensor) -> Tensor:
    """Returns the message (3 C + 2,): mean, low, M2 of each channel, count as a pair."""
    stats, channels = statistics_dtype(x), x.shape[1]
    if x.numel() == 0:
        return x.new_zeros(3 * channels + 2, dtype=stats)
    count = torch.tensor([x.numel() // channels], dtype=torch.float64)
    var, mean = torch.var_mean(x.double(), _others(x), correction=0)
    return torch.cat([*_pair(mean, stats), (var * count).to(stats), *_pair(count, stats)])


def merge_messages(
    messages: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (mean (2, C), rstd (C,), count (1,)) of all messages (ranks, 3 C + 2); moves the running buffers."""
    stats, channels = messages.dtype, (messages.shape[1] - 2) // 3
    means, lows, m2s, counts = messages.double().split([channels, channels, channels, 2], 1)
    counts = counts.sum(1, keepdim=True)
    count = counts.sum()
    if not count:
        return messages.new_zeros(2, channels), messages.new_zeros(channels), count.to(stats).view(1)
    taken = counts[:, 0] > 0  # a process without elements has no mean
    means, counts = (means + lows)[taken], counts[taken]
    mean = means[0] + (counts * (means - means[0])).sum(0) / count
    var = (m2s[taken] + counts * (means - mean).square()).sum(0) / count
    if running_mean is not None and running_var is not None:
        running_mean.copy_(running_mean.double() * (1.0 - momentum) + mean * momentum)
        running_var.copy_(running_var.double() * (1.0 - momentum) + var * (count / (count - 1.0)) * momentum)
    return torch.stack(_pair(mean, stats)), (var + eps).rsqrt().to(stats), count.to(stats).view(1)


def normalize(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Returns y of this process's x (N, C, *)."""
    y = _centred(x, mean) * _columns(rstd, x)
    y = y if weight is None else y * _columns(weight, x)
    return _in_layout_of(x, y if bias is None else y + _columns(bias, x))


def sums(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """Returns (2, C): sum(dy x_hat) and sum(dy) over this process's x."""
    dy64 = dy.double()
    dw = (dy64 * _centred(x, mean)).sum(_others(x)) * rstd.double()
    return torch.stack([dw, dy64.sum(_others(x))]).to(rstd.dtype)


def add_sums(messages: Tensor) -> Tensor:
    """Returns the sums (2, C) over all processes, from those of each (ranks, 2, C)."""
    return messages.double().sum(0).to(messages.dtype)


def input_gradient(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, total: Tensor, count: Tensor
) -> Tensor:
    """Returns dx of this process's x (N, C, *), from the sums (2, C) and the count (1,) of all processes."""
    scale = rstd.double() if weight is None else rstd.double() * weight.double()
    dw, db = total.double() / count.double()
    x_hat = _centred(x, mean) * _columns(rstd, x)
    return _in_layout_of(x, _columns(scale, x) * (dy.double() - _columns(db, x) - x_hat * _columns(dw, x)))
