"""l_p normalization put together from PyTorch's own operators; see composed.py."""

from __future__ import annotations

from math import inf, sqrt

import torch
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    """x, or float32 for 16 bits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def lp_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_norm: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    p: float = 2.0,
) -> Tensor:
    """Centring and division by the average l_p norm, as `normlib.functional.lp_norm` has it."""
    _check_lp_norm(input, (running_mean, running_norm), (weight, bias), training, eps, p)
    x, dims = _wide(input), [d for d in range(input.dim()) if d != 1]
    if training and x.numel():
        mean = x.mean(dims)
        if p == 1:
            norm = x.abs().mean(dims)
            sigma = norm + sqrt(eps)
        elif p == 2:
            square = x.square().mean(dims)
            norm, sigma = square.detach().sqrt(), (square + eps).sqrt()
        else:
            norm = x.abs().amax(dims)
            sigma = norm.clamp(min=sqrt(eps))
        if running_mean is not None and running_norm is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_norm.lerp_(norm.to(running_norm.dtype), momentum)
    elif training:
        mean, sigma = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    else:
        assert running_mean is not None and running_norm is not None
        mean, norm = _wide(running_mean), _wide(running_norm)
        sigma = norm + sqrt(eps) if p == 1 else (norm * norm + eps).sqrt() if p == 2 else norm.clamp(min=sqrt(eps))
    channel = [-1] + [1] * (x.dim() - 2)
    scale = 1 / sigma if weight is None else _wide(weight) / sigma
    y = (x - mean.view(channel)) * scale.view(channel)
    y = y if bias is None else y + _wide(bias).view(channel)
    return y.to(input.dtype)


def _check_lp_norm(
    input: Tensor,
    buffers: tuple[Tensor | None, ...],
    parameters: tuple[Tensor | None, ...],
    training: bool,
    eps: float,
    p: float,
) -> None:
    if p not in (1, 2, inf):
        raise ValueError(f"p must be 1, 2 or inf, not {p!r}")
    if input.dim() < 2:
        raise ValueError(f"input must be (N, C, *), not of shape {tuple(input.shape)}")
    if not input.is_floating_point():
        raise NotImplementedError(f"lp_norm is not implemented for {input.dtype}")
    if (buffers[0] is None) != (buffers[1] is None):
        raise ValueError("running_mean and running_norm must either both be None or neither be None")
    if not training and buffers[0] is None:
        raise ValueError("running_mean and running_norm must be defined in evaluation mode")
    if not (eps > 0 if training else eps >= 0):
        raise ValueError(f"eps must be {'positive in training' if training else 'zero or more'}, not {eps!r}")
    if training and input.numel() == input.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.shape}")
    names = ("running_mean", "running_norm", "weight", "bias")
    for name, vector in zip(names, (*buffers, *parameters), strict=True):
        if vector is not None and vector.shape != (input.shape[1],):
            raise ValueError(f"{name} must have shape {(input.shape[1],)}, not {tuple(vector.shape)}")
