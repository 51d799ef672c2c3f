"""Weight normalization, of rows."""

from __future__ import annotations

from torch import Tensor


def weight_norm(x: Tensor, weight: Tensor, dy: Tensor | None = None) -> dict[str, Tensor]:
    """Weight normalization (Salimans and Kingma 2016, equations 2 and 3): each x[i] scaled to the length weight[i].

    x: (M, *), the paper's v; weight: M elements in any shape, its g. Returns float64 `y`, its w, and `norm` (M,), and
    with dy `dx`, like x, and `dw`, like weight.
    """
    rows = x.double().flatten(1)
    g = weight.double().reshape(-1, 1)
    norm = (rows * rows).sum(1, keepdim=True).sqrt()
    x_hat = rows / norm
    out = {"y": (g * x_hat).reshape(x.shape), "norm": norm.flatten()}
    if dy is not None:
        dy64 = dy.double().reshape(rows.shape)
        dw = (dy64 * x_hat).sum(1, keepdim=True)
        out["dx"] = (g / norm * (dy64 - x_hat * dw)).reshape(x.shape)
        out["dw"] = dw.reshape(weight.shape)
    return out
