"""Group normalization, and instance normalization with the running statistics that it may have."""

from __future__ import annotations

from math import prod

from torch import Tensor

from normlib.reference._channels import channelwise


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    dy: Tensor | None = None,
) -> dict[str, Tensor]:
    """Group normalization (Wu and He 2018, equations 1, 2 and 7).

    x: (N, C, *). Returns float64 `y`, `mean`, `var` (biased) and `rstd` (each (N * groups,)), and with dy also `dx`,
    `dw`, `db`.
    """

    def grouped(t: Tensor) -> Tensor:
        return t.reshape(x.shape[0], groups, -1)

    values = grouped(x.double())
    mean = values.mean(2, keepdim=True)
    d = values - mean
    var = (d * d).mean(2, keepdim=True)
    rstd = (var + eps).rsqrt()
    x_hat = (d * rstd).reshape(x.shape)
    w = channelwise(weight, x, 1.0)
    out = {
        "y": x_hat * w + channelwise(bias, x, 0.0),
        "mean": mean.flatten(),
        "var": var.flatten(),
        "rstd": rstd.flatten(),
    }
    if dy is not None:
        dy64, dims = dy.double(), [d for d in range(x.dim()) if d != 1]
        wdy = grouped(w * dy64)
        c1 = (wdy * grouped(x_hat)).mean(2, keepdim=True)
        c2 = wdy.mean(2, keepdim=True)
        out["dx"] = (rstd * (wdy - grouped(x_hat) * c1 - c2)).reshape(x.shape)
        out["dw"] = (dy64 * x_hat).sum(dims)
        out["db"] = dy64.sum(dims)
    return out


def instance_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    dy: Tensor | None = None,
) -> dict[str, Tensor]:
    """Instance normalization (Ulyanov, Vedaldi and Lempitsky 2016): a channel a group.

    As `group_norm`, and `mean_of_images`, `var_unbiased_of_images` (each (C,)), which running statistics move towards.
    """
    n, c, positions = x.shape[0], x.shape[1], prod(x.shape[2:])
    out = group_norm(x, c, weight, bias, eps, dy)
    unbiased = out["var"] * positions / max(positions - 1, 1)
    out["mean_of_images"] = out["mean"].reshape(n, c).mean(0)
    out["var_unbiased_of_images"] = unbiased.reshape(n, c).mean(0)
    return out
