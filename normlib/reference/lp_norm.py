"""Normalization by the average l_p norm of the values before centring."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, where

from normlib.reference._channels import channelwise


def lp_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    p: float = 2.0,
    eps: float = 1e-5,
    dy: Tensor | None = None,
) -> dict[str, Tensor]:
    """Centring and division by the l_p norm (Santurkar et al. 2018, section 3.3), p = 1, 2 or inf.

    x: (N, C, *). Returns float64 `y`, `mean`, `norm` (sum(|x|^p) / n)^(1/p) and `rstd` 1 / sigma (each (C,)), where
    sigma is the l_p norm of (norm, sqrt(eps)), and with dy also `dx`, `dw`, `db`. For p = inf the elements that tie for
    the maximum share its derivative.
    """
    x64 = x.double()
    dims = [d for d in range(x.dim()) if d != 1]
    count = x.numel() // x.shape[1]
    mean = x64.mean(dims, keepdim=True)
    size = x64.abs()
    if p == 1:
        norm = size.mean(dims, keepdim=True)
        slope = x64.sign() / count
    elif p == 2:
        square = (x64 * x64).mean(dims, keepdim=True)
        norm = square.detach().sqrt()
        slope = x64 / (square + eps).sqrt() / count
    else:
        norm = size.amax(dims, keepdim=True)
        highest = (size == norm).double()
        slope = where(norm < sqrt(eps), 0.0, x64.sign() * highest / highest.sum(dims, keepdim=True))
    rstd = (square + eps).rsqrt() if p == 2 else 1 / _sigma(norm, p, eps)
    x_hat = (x64 - mean) * rstd
    w = channelwise(weight, x, 1.0)
    out = {
        "y": x_hat * w + channelwise(bias, x, 0.0),
        "mean": mean.flatten(),
        "norm": norm.flatten(),
        "rstd": rstd.flatten(),
    }
    if dy is not None:
        dy64 = dy.double()
        dw = (dy64 * x_hat).sum(dims, keepdim=True)
        db = dy64.sum(dims, keepdim=True)
        out["dx"] = w * rstd * (dy64 - db / count - dw * slope)
        out["dw"], out["db"] = dw.flatten(), db.flatten()
    return out


def lp_norm_eval(
    x: Tensor,
    running_mean: Tensor,
    running_norm: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    p: float = 2.0,
    eps: float = 1e-5,
    dy: Tensor | None = None,
) -> dict[str, Tensor]:
    """The same with given statistics: float64 `y`, and with dy `dx`, `dw`, `db`."""
    dims = [d for d in range(x.dim()) if d != 1]
    rstd = 1 / _sigma(channelwise(running_norm, x, 1.0), p, eps)
    x_hat = (x.double() - channelwise(running_mean, x, 0.0)) * rstd
    w = channelwise(weight, x, 1.0)
    out = {"y": x_hat * w + channelwise(bias, x, 0.0)}
    if dy is not None:
        dy64 = dy.double()
        out["dx"] = dy64 * w * rstd
        out["dw"], out["db"] = (dy64 * x_hat).sum(dims), dy64.sum(dims)
    return out


def _sigma(norm: Tensor, p: float, eps: float) -> Tensor:
    """Returns the l_p norm of (norm, sqrt(eps))."""
    if p == 1:
        return norm + sqrt(eps)
    return torch.sqrt(norm * norm + eps) if p == 2 else norm.clamp(min=sqrt(eps))
