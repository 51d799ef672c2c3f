"""The truth: each operator in float64, by its defining formula, forward and backward.

Accuracy is measured against these. They are written for clarity, from the inputs as given (already rounded to
their dtype), and share nothing with the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


def _channelwise(v: Tensor | None, like: Tensor, default: float) -> Tensor:
    """A per-channel vector as float64 of shape (1, C, 1, ...)."""
    shape = [1, like.shape[1]] + [1] * (like.dim() - 2)
    if v is None:
        return torch.full(shape, default, dtype=torch.float64, device=like.device)
    return v.double().reshape(shape)


def _blocked(z: Tensor, gradient: Tensor) -> Tensor:
    """What of a gradient comes back through relu(z): nothing where z <= 0, as PyTorch has it for zeros and NaN."""
    return torch.where(z <= 0, 0.0, gradient)


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
    w = _channelwise(weight, x, 1.0)
    z = x_hat * w + _channelwise(bias, x, 0.0) + (0.0 if residual is None else residual.double())
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
    rstd = (_channelwise(running_var, x, 1.0) + eps).rsqrt()
    x_hat = (x64 - _channelwise(running_mean, x, 0.0)) * rstd
    w = _channelwise(weight, x, 1.0)
    z = x_hat * w + _channelwise(bias, x, 0.0) + (0.0 if residual is None else residual.double())
    out = {"y": z.relu() if relu else z}
    if dy is not None:
        dz = _blocked(z, dy.double()) if relu else dy.double()
        dx = dz * w * rstd
        out["dx"], out["dz"] = _blocked(x64, dx) if pre_relu else dx, dz
        out["dw"], out["db"] = (dz * x_hat).sum(dims), dz.sum(dims)
    return out


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    dy: Tensor | None = None,
    dz: Tensor | None = None,
    zero_centred: bool = False,
) -> dict[str, Tensor]:
    """Layer normalization (Ba, Kiros and Hinton 2016, equations 3 and 4) over the last dimensions.

    Returns float64 `y`, `mean`, `rstd` (one a row), and with dy `dx`, `dw`, `db` (of normalized_shape). If x is a
    residual stream, dz is the gradient of its other uses, which `dx` includes. `zero_centred`: 1 + weight scales.
    """
    return _rows(x, normalized_shape, weight, bias, eps, dy, dz, zero_centred, centred=True)


def rms_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    dy: Tensor | None = None,
    dz: Tensor | None = None,
    zero_centred: bool = False,
) -> dict[str, Tensor]:
    """Root mean square normalization (Zhang and Sennrich 2019, equation 4) over the last dimensions.

    Returns float64 `y`, `rstd` (one a row), and with dy `dx`, `dw`, `db` (of normalized_shape); dz and `zero_centred`
    as in `layer_norm`.
    """
    return _rows(x, normalized_shape, weight, bias, eps, dy, dz, zero_centred, centred=False)


def _rows(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dy: Tensor | None,
    dz: Tensor | None,
    zero_centred: bool,
    centred: bool,
) -> dict[str, Tensor]:
    rows = x.double().reshape(-1, prod(normalized_shape))
    mean = rows.mean(1, keepdim=True)
    d = rows - mean if centred else rows
    rstd = ((d * d).mean(1, keepdim=True) + eps).rsqrt()
    x_hat = d * rstd
    w = 1.0 if weight is None else weight.double().flatten() + float(zero_centred)
    b = 0.0 if bias is None else bias.double().flatten()
    out = {"y": (x_hat * w + b).reshape(x.shape), "rstd": rstd.flatten()}
    if centred:
        out["mean"] = mean.flatten()
    if dy is not None:
        dy64 = dy.double().reshape(rows.shape)
        wdy = w * dy64
        c1 = (x_hat * wdy).mean(1, keepdim=True)
        c2 = wdy.mean(1, keepdim=True) if centred else 0.0
        out["dx"] = (rstd * (wdy - x_hat * c1 - c2)).reshape(x.shape) + (0.0 if dz is None else dz.double())
        out["dw"] = (dy64 * x_hat).sum(0).reshape(tuple(normalized_shape))
        out["db"] = dy64.sum(0).reshape(tuple(normalized_shape))
    return out
