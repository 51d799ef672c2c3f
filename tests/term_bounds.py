"""Bounds of a normalization's error against float64: its last rounding, and the rounding of the terms it sums.

A sum in floating point is off in proportion to the magnitudes of its terms, and not to itself, which may cancel
(Higham, "Accuracy and stability of numerical algorithms", section 4.2): a bound by the result alone is either wrong
for a gradient near zero or loose for every other.
"""

from __future__ import annotations

import torch
from torch import Tensor

# What precedes the last rounding, in float32 (float64 for float64): mean, variance, rstd, x_hat, two sums, each a
# rounding or two of their terms. In six draws of all the databases' samples the largest was 5.3.
ROUNDINGS = 8


def assert_one_rounding_away(out: Tensor, truth: Tensor, terms: Tensor, name: str = "") -> None:
    """Each element is the rounded truth, give or take what its terms lose; NaN and Inf are where the truth has them."""
    info = torch.finfo(out.dtype)
    wide = torch.finfo(torch.float64 if out.dtype == torch.float64 else torch.float32)
    rounded = truth.to(out.dtype)
    finite = rounded.isfinite()
    message = f"{name}: {{}}".format
    torch.testing.assert_close(out[~finite], rounded[~finite], rtol=0, atol=0, equal_nan=True, msg=message)
    last = info.eps / 2 * truth.abs().clamp(min=info.smallest_normal) if out.dtype.itemsize == 2 else 0.0
    bound = (last + ROUNDINGS * wide.eps / 2 * terms).expand_as(truth)[finite]
    error = (out.double() - truth).abs()[finite]
    assert bool((error <= bound).all()), f"{name}: {float((error / bound).nan_to_num(0).max()):.2f} times the bound"


def terms(
    norm: str,
    tensors: dict[str, Tensor | None],
    dy: Tensor,
    normalized: int,
    eps: float,
    given: bool,
    grouped: tuple[int, ...] | None = None,
) -> dict[str, Tensor]:
    """For y and each gradient, the sum of the magnitudes of the terms that it is a sum of, in float64.

    normalized: how many of the last dimensions a row spans (batch norm has channels instead); given: whether the
    running statistics normalize; grouped: of group norm, the input as (N, groups, channels of one, positions).
    kernels/ opens with the formulas.
    """
    names = ("input", "weight", "bias", "running_mean", "running_var")
    x, w, b, mean, var = (None if tensors[n] is None else tensors[n].double() for n in names)
    dy = dy.double().abs()
    if norm == "batch_norm":
        column = [1, -1] + [1] * (x.dim() - 2)
        w, b, mean, var = (None if t is None else t.reshape(column) for t in (w, b, mean, var))
        averaged = summed = [d for d in range(x.dim()) if d != 1]
    elif grouped:
        x, dy = x.reshape(grouped), dy.reshape(grouped)
        w, b, mean, var = (None if t is None else t.reshape(1, *grouped[1:3], 1) for t in (w, b, mean, var))
        averaged, summed = [2, 3], [0, 3]
    else:
        rows = x.dim() - normalized
        averaged, summed = list(range(rows, x.dim())), list(range(rows))

    def average(t: Tensor) -> Tensor:
        return t.mean(averaged, keepdim=True)

    def total(t: Tensor) -> Tensor:
        return t.sum(summed) if summed else t  # PyTorch takes no dimension for all of them

    if given:
        mean_terms = mean.abs()
    else:
        mean, mean_terms = (0.0, 0.0) if norm == "rms_norm" else (average(x), average(x.abs()))
        var = average((x - mean).square())
    rstd = (var + eps).rsqrt()
    x_hat = (x.abs() + mean_terms) * rstd
    wdy = dy if w is None else dy * w.abs()
    y = x_hat if w is None else x_hat * w.abs()
    found = {
        "y": y if b is None else y + b.abs(),
        "dinput": rstd * (wdy if given else wdy + average(wdy) + x_hat * average(x_hat * wdy)),
        "dweight": total(dy * x_hat),
        "dbias": total(dy),
    }
    if not grouped:
        return found
    return {
        n: t.flatten() if n in ("dweight", "dbias") else t.reshape(tensors["input"].shape) for n, t in found.items()
    }


def buffer_terms(
    x: Tensor, before: dict[str, Tensor], after: dict[str, Tensor], grouped: tuple[int, ...] | None = None
) -> dict[str, Tensor]:
    """The same for running buffers; an update (1 - m) old + m new, |m| <= 1, has none beyond 4 |old| + |result|."""
    if grouped:  # an image may come without a batch
        x = x.reshape(grouped[0], grouped[1] * grouped[2], grouped[3])
    channels = [d for d in range(x.dim()) if d != 1]
    new = {"running_mean": x.double().abs().mean(channels), "running_var": 0.0}  # a variance's terms do not cancel
    return {n: 4 * old.double().abs() + after[n].abs() + new[n] for n, old in before.items()}
