"""Batch normalization, with given statistics or the batch's own, ReLUs and a residual."""

from __future__ import annotations

from math import prod

from torch import Tensor, where

from normlib.reference._channels import channelwise


def _blocked(z: Tensor, gradient: Tensor) -> Tensor:
    """Returns the gradient through relu(z): zero where z <= 0; a NaN in z lets it pass, as in PyTorch."""
    return where(z <= 0, 0.0, gradient)


def batch_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    dy: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    pre_relu: bool = False,
) -> dict[str, Tensor]:
    """Batch normalization in training mode (Ioffe and Szegedy 2015, algorithm 1).

    x: (N, C, *). Returns float64 `y`, `mean`, `var` (biased), `var_unbiased`, `rstd` (each (C,)), and with dy
    also `dx`, `dw`, `db` (section 3's chain rule), and `dz`, the gradient of what `relu` is applied to, and so of a
    residual, which is added before it. With `pre_relu` relu(x) is normalized.
    """
    x64 = x.double().relu() if pre_relu else x.double()
    dims = [d for d in range(x.dim()) if d != 1]
    count = prod(x.shape[d] for d in dims)
    mean = x64.mean(dims, keepdim=True)
    d = x64 - mean
    var = (d * d).mean(dims, keepdim=True)
    rstd = (var + eps).rsqrt()
    x_hat = d * rstd
    w = channelwise(weight, x, 1.0)
    z = x_hat * w + channelwise(bias, x, 0.0) + (0.0 if residual is None else residual.double())
    out = {
        "y": z.relu() if relu else z,
        "mean": mean.flatten(),
        "var": var.flatten(),
        "var_unbiased": var.flatten() * count / max(count - 1, 1),
        "rstd": rstd.flatten(),
    }
    if dy is not None:
        dz = _blocked(z, dy.double()) if relu else dy.double()
        dw = (dz * x_hat).sum(dims, keepdim=True)
        db = dz.sum(dims, keepdim=True)
        dx = w * rstd * (dz - db / count - x_hat * dw / count)
        out["dx"], out["dz"] = _blocked(x64, dx) if pre_relu else dx, dz
        out["dw"], out["db"] = dw.flatten(), db.flatten()
    return out


def batch_norm_eval(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    dy: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    pre_relu: bool = False,
) -> dict[str, Tensor]:
    """Batch normalization with given statistics (algorithm 2): float64 `y`, and with dy `dx`, `dw`, `db`, `dz`.

    A residual and ReLUs as in `batch_norm`.
    """
    x64 = x.double().relu() if pre_relu else x.double()
    dims = [d for d in range(x.dim()) if d != 1]
    rstd = (channelwise(running_var, x, 1.0) + eps).rsqrt()
    x_hat = (x64 - channelwise(running_mean, x, 0.0)) * rstd
    w = channelwise(weight, x, 1.0)
    z = x_hat * w + channelwise(bias, x, 0.0) + (0.0 if residual is None else residual.double())
    out = {"y": z.relu() if relu else z}
    if dy is not None:
        dz = _blocked(z, dy.double()) if relu else dy.double()
        dx = dz * w * rstd
        out["dx"], out["dz"] = _blocked(x64, dx) if pre_relu else dx, dz
        out["dw"], out["db"] = (dz * x_hat).sum(dims), dz.sum(dims)
    return out
