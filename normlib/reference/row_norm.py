"""Layer norm and RMS norm, of rows or of a residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

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
