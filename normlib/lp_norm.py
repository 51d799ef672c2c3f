"""Normalization by the average l_p norm of the values before centring (Santurkar et al. 2018, section 3.3)."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from normlib import composed, reference
from normlib.batch_norm import fake_eval, fake_train, fits, step
from normlib.dispatch import (
    CustomOperator,
    LazyModule,
    Quadruple,
    Triple,
    backward_operator,
    by_mask,
    contiguous,
    derive_again,
    derive_by,
)
from normlib.statistics_norm import StatisticsNorm

kernels = LazyModule("normlib.kernels.batch_norm.lp")

ORDERS = (1, 2, inf)


def _train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_norm: Tensor | None,
    p: float,
    momentum: float,
    eps: float,
) -> Quadruple:
    vectors = (contiguous(weight), contiguous(bias), running_mean, running_norm)
    return kernels.lp_norm_forward(x, *vectors, p, momentum, eps)


def _fake_lp_train(x: Tensor, *arguments: Any) -> Quadruple:
    return *fake_train(x), kernels.empty_peak(x, arguments[4])


def _eval(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_norm: Tensor,
    p: float,
    eps: float,
) -> Tensor:
    vectors = (contiguous(weight), contiguous(bias), running_mean.contiguous(), running_norm.contiguous())
    return kernels.lp_norm_eval_forward(x, *vectors, p, eps)


def _backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    peak: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    p: float,
    eps: float,
    evaluating: bool,
    output_mask: list[bool],
) -> Triple:
    saved = (mean.contiguous(), rstd.contiguous(), contiguous(peak), contiguous(weight))
    needs = (output_mask[0], any(output_mask[1:]))
    found = kernels.lp_norm_backward(dy, x, *saved, p, eps, evaluating, *needs)
    return cast(Triple, by_mask(found, (x, weight, bias), output_mask))


def _formula(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, p: float, eps: float, evaluating: bool
) -> dict[str, Tensor]:
    if evaluating:
        return reference.lp_norm_eval(x, mean, rstd, weight, None, p, eps, dy)
    return reference.lp_norm(x, weight, None, p, eps, dy)


_lp_norm_train = CustomOperator("lp_norm_train", _train, _fake_lp_train, mutates=("running_mean", "running_norm"))
_lp_norm_eval = CustomOperator("lp_norm_eval", _eval, fake_eval)
_lp_norm_backward = backward_operator("lp_norm_backward", _backward)
derive_by(_lp_norm_train, _lp_norm_backward, results=("y", "mean", "rstd", "peak"), evaluating=False)
_GIVEN: dict[str, Any] = {"mean": "running_mean", "rstd": "running_norm", "peak": None, "evaluating": True}
derive_by(_lp_norm_eval, _lp_norm_backward, results=("y",), **_GIVEN)
derive_again(_lp_norm_backward, _formula)


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
    """Centres each channel over the batch and all positions, and divides it by the l_p norm that it had before.

    y = (x - mean) / sigma * weight + bias, where sigma is the l_p norm of two numbers, sqrt(eps) and the channel's
    norm (sum(|x|^p) / n)^(1/p), max |x| for p = inf:

        norm + sqrt(eps) for p = 1,    sqrt(norm^2 + eps) for p = 2,    max(norm, sqrt(eps)) for p = inf

    So p = 2 is batch norm where the mean is 0, and a channel of zeros is divided by the same for every p.

    input: (N, C, *) in float32, float16, bfloat16 or float64, contiguous or channels-last (kept in the result);
    weight, bias, running_mean, running_norm: (C,) in input's dtype, or float32 beside a 16-bit input. In training the
    batch's statistics are used, and the running buffers, if given, move by `momentum` towards them; otherwise the
    running buffers are used. Returns input's shape and dtype. Elements that tie for the maximum share its derivative.
    Another p, bad shapes and eps, and in training a single value a channel raise ValueError before any buffer changes;
    integers raise NotImplementedError.

    Santurkar, Tsipras, Ilyas and Madry, "How does batch normalization help optimization?" (2018), section 3.3.
    """
    vectors = (weight, bias, running_mean, running_norm)
    if p not in ORDERS or not fits(input, vectors, training, momentum, eps):
        return composed.lp_norm(input, running_mean, running_norm, weight, bias, training, momentum, eps, p)
    if training:
        return cast(Tensor, _lp_norm_train(input, *vectors, p, momentum, eps)[0])
    return cast(Tensor, _lp_norm_eval(input, *vectors, p, eps))


class _LpNorm(StatisticsNorm):
    running_norm: Tensor | None
    _spread = "running_norm"
    beyond = "l_p norm"

    def __init__(
        self,
        num_features: int,
        p: float = 2.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if p not in ORDERS:
            raise ValueError(f"p must be 1, 2 or inf, not {p!r}")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.p = p

    def extra_repr(self) -> str:
        names = ("p", "eps", "momentum", "affine", "track_running_stats")
        return ", ".join([str(self.num_features), *(f"{name}={getattr(self, name)}" for name in names)])

    def forward(self, input: Tensor) -> Tensor:
        """input: (N, C, *); returns the same shape, dtype and layout."""
        self._check_input_dim(input)
        buffers, training, momentum = step(self, "running_norm")
        return lp_norm(input, *buffers, self.weight, self.bias, training, momentum, self.eps, self.p)

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor: ...


class LpNorm1d(_LpNorm):
    """`functional.lp_norm` of (N, C) or (N, C, L), with weight, bias and running statistics.

    num_features: C; p: 1, 2 or inf, another raises ValueError; eps, momentum (None for a cumulative average), affine
    and track_running_stats as in `torch.nn.BatchNorm1d`, which refuses the same inputs.
    """

    _check_input_dim = nn.BatchNorm1d._check_input_dim


class LpNorm2d(_LpNorm):
    """`functional.lp_norm` of (N, C, H, W); arguments as in LpNorm1d."""

    _check_input_dim = nn.BatchNorm2d._check_input_dim


class LpNorm3d(_LpNorm):
    """`functional.lp_norm` of (N, C, D, H, W); arguments as in LpNorm1d."""

    _check_input_dim = nn.BatchNorm3d._check_input_dim
