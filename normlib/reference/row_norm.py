"""Layer norm and RMS norm, of rows or of a residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

import torch
from torch import Tensor


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
    partial: float = 1.0,
) -> dict[str, Tensor]:
    """Root mean square normalization (Zhang and Sennrich 2019, equation 4) over the last dimensions.

    Returns float64 `y`, `rstd` (one a row), and with dy `dx`, `dw`, `db` (of normalized_shape); dz and `zero_centred`
    as in `layer_norm`. With `partial` below 1 the mean square is of a row's first ceil(partial N) elements (section 4).
    """
    return _rows(x, normalized_shape, weight, bias, eps, dy, dz, zero_centred, centred=False, partial=partial)


def partial_rms_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    dy: Tensor | None = None,
    partial: float = 0.0625,
) -> dict[str, Tensor]:
    """RMS normalization by the first ceil(partial N) of a row's N elements (Zhang and Sennrich 2019, section 4).

    Returns float64 `y`, `rstd` (one a row), and with dy `dx`, `dw`, `db` (of normalized_shape).
    """
    return rms_norm(x, normalized_shape, weight, bias, eps, dy, partial=partial)


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
    partial: float = 1.0,
) -> dict[str, Tensor]:
    rows = x.double().reshape(-1, prod(normalized_shape))
    mean = rows.mean(1, keepdim=True)
    d = rows - mean if centred else rows
    of = ceil(partial * rows.shape[1])  # the statistic is of so many columns
    rstd = ((d * d)[:, :of].mean(1, keepdim=True) + eps).rsqrt()
    x_hat = d * rstd
    w = 1.0 if weight is None else weight.double().flatten() + float(zero_centred)
    b = 0.0 if bias is None else bias.double().flatten()
    out = {"y": (x_hat * w + b).reshape(x.shape), "rstd": rstd.flatten()}
    if centred:
        out["mean"] = mean.flatten()
    if dy is not None:
        dy64 = dy.double().reshape(rows.shape)
        wdy = w * dy64
        c1 = (x_hat * wdy).sum(1, keepdim=True) / of
        c2 = wdy.mean(1, keepdim=True) if centred else 0.0
        through_rstd = torch.nn.functional.pad((x_hat * c1)[:, :of], (0, rows.shape[1] - of))
        out["dx"] = (rstd * (wdy - through_rstd - c2)).reshape(x.shape) + (0.0 if dz is None else dz.double())
        out["dw"] = (dy64 * x_hat).sum(0).reshape(tuple(normalized_shape))
        out["db"] = dy64.sum(0).reshape(tuple(normalized_shape))
    return out
