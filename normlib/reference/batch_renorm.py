"""Batch renormalization, against the running statistics or with them."""

from __future__ import annotations

from math import prod

from torch import Tensor

from normlib.reference._channels import channelwise


def batch_renorm(
    x: Tensor,
    running_mean: Tensor,
    running_std: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.01,
    eps: float = 1e-3,
    rmax: float = 3.0,
    dmax: float = 5.0,
    dy: Tensor | None = None,
) -> dict[str, Tensor]:
    """Batch renormalization in training mode (Ioffe 2017, algorithm 1).

    x: (N, C, *). Returns float64 `y`, and of each channel `mean`, `rstd` (of the batch, eps in it), `r`, `d` and the
    new `running_mean` and `running_std`; with dy also `dx`, `dw`, `db`, by the paper's chain rule, in which r and d are
    constants.
    """
    x64 = x.double()
    dims = [d for d in range(x.dim()) if d != 1]
    count = prod(x.shape[d] for d in dims)
    mean = x64.mean(dims, keepdim=True)
    std = ((x64 - mean).square().mean(dims, keepdim=True) + eps).sqrt()
    old_mean, old_std = channelwise(running_mean, x, 0.0), channelwise(running_std, x, 1.0)
    r = (std / old_std).clamp(1 / rmax, rmax).detach()
    d = ((mean - old_mean) / old_std).clamp(-dmax, dmax).detach()
    w = channelwise(weight, x, 1.0)
    x_hat = (x64 - mean) / std
    renormed = x_hat * r + d
    out = {
        "y": renormed * w + channelwise(bias, x, 0.0),
        "mean": mean.flatten(),
        "rstd": (1 / std).flatten(),
        "r": r.flatten(),
        "d": d.flatten(),
        "running_mean": (old_mean + momentum * (mean - old_mean)).flatten(),
        "running_std": (old_std + momentum * (std - old_std)).flatten(),
    }
    if dy is not None:
        dy64 = dy.double()
        dx_hat = dy64 * w * r
        dstd = -(dx_hat * x_hat).sum(dims, keepdim=True) / std
        dmean = -dx_hat.sum(dims, keepdim=True) / std
        out["dx"] = dx_hat / std + dmean / count + dstd * x_hat / count
        out["dw"], out["db"] = (dy64 * renormed).sum(dims), dy64.sum(dims)
    return out


def batch_renorm_eval(
    x: Tensor,
    running_mean: Tensor,
    running_std: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    dy: Tensor | None = None,
) -> dict[str, Tensor]:
    """Batch renormalization's inference: float64 `y`, and with dy `dx`, `dw`, `db`. The deviation has its eps in it."""
    dims = [d for d in range(x.dim()) if d != 1]
    std, w = channelwise(running_std, x, 1.0), channelwise(weight, x, 1.0)
    x_hat = (x.double() - channelwise(running_mean, x, 0.0)) / std
    out = {"y": x_hat * w + channelwise(bias, x, 0.0)}
    if dy is not None:
        dy64 = dy.double()
        out["dx"] = dy64 * w / std
        out["dw"], out["db"] = (dy64 * x_hat).sum(dims), dy64.sum(dims)
    return out
