"""What norms of channels share around their kernels: what these can take, and what a module's forward begins with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normlib.backend import serves
from normlib.kernels.host import dense


def contiguous(vector: Tensor | None) -> Tensor | None:
    """A per-channel vector as the kernels take it."""
    return None if vector is None else vector.contiguous()


def like_input(x: Tensor) -> Tensor:
    """An empty result in the layout that the kernels give it: x's, where that is one of their two."""
    return torch.empty_like(dense(x)[0])


def fits(x: Tensor, channel_vectors: tuple[Tensor | None, ...], training: bool, momentum: float, eps: float) -> bool:
    """Whether the kernels can take these arguments; if not, PyTorch computes it, or says what is wrong."""
    if not (serves(x, *channel_vectors) and isinstance(momentum, (float, int)) and isinstance(eps, (float, int))):
        return False
    running_mean, running_var = channel_vectors[2:]
    return (
        x.dim() >= 2
        and x.shape[1] > 0
        and all(v is None or (v.dim() == 1 and v.shape[0] == x.shape[1]) for v in channel_vectors)
        and (running_mean is None) == (running_var is None)
        and all(v is None or v.is_contiguous() for v in (running_mean, running_var))
        and (eps > 0.0 and x.numel() > x.shape[1] if training else eps >= 0.0 and running_mean is not None)
    )


def step(module: Any, spread: str = "running_var") -> tuple[tuple[Tensor | None, Tensor | None], bool, float]:
    """What a module's forward begins with: ((running_mean, running_var), training, momentum), its batch counted.

    `spread` is what it has in running_var's place.
    """
    tracking = module.training and module.track_running_stats
    momentum = 0.0 if module.momentum is None else module.momentum
    if tracking and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:  # a cumulative average
            momentum = 1.0 / float(module.num_batches_tracked)
    buffers = (module.running_mean, getattr(module, spread))
    given = buffers if not module.training or module.track_running_stats else (None, None)
    return given, module.training or (buffers[0] is None and buffers[1] is None), momentum
