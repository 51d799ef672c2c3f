"""Normalization by the average l_p norm of what has not been centred (Santurkar et al. 2018, section 3.3)."""

from __future__ import annotations

from math import inf
from typing import Any, cast

import torch
from torch import Tensor, nn

from normlib import composed, reference
from normlib.channels import contiguous, fits, like_input, step
from normlib.kernels.batch_norm import lp as kernels
from normlib.kernels.numerics import statistics_dtype
from normlib.registration import differentiate, gradient_of, register

Triple = tuple[Tensor, Tensor, Tensor]
Quadruple = tuple[Tensor, Tensor, Tensor, Tensor]
ORDERS = (1, 2, inf)

# ------------------------------------------------------------------------------------------------ the operators


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


def _fake_train(x: Tensor, *arguments: Any) -> Quadruple:
    mean = x.new_empty((2, x.shape[1]), dtype=statistics_dtype(x))
    return like_input(x), mean, mean.new_empty((x.shape[1],)), kernels.empty_peak(x, arguments[4])


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


def _fake_eval(x: Tensor, *_: Any) -> Tensor:
    return like_input(x)


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
    dx, dw, db = (
        t.to(like.dtype) if m and t is not None and like is not None else x.new_empty(0)
        for t, like, m in zip(found, (x, weight, bias), output_mask, strict=True)
    )
    return dx, dw, db


def _fake_backward(
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
    dx = like_input(x) if output_mask[0] else x.new_empty(0)
    dw, db = (
        p.new_empty(p.shape) if m and p is not None else x.new_empty(0)
        for p, m in zip((weight, bias), output_mask[1:], strict=True)
    )
    return dx, dw, db


_PARAMETERS = "Tensor? weight, Tensor? bias"

_lp_norm_train = register(
    f"lp_norm_train(Tensor x, {_PARAMETERS}, Tensor(a!)? running_mean, Tensor(b!)? running_norm, float p,"
    " float momentum, float eps) -> (Tensor y, Tensor mean, Tensor rstd, Tensor peak)",
    _train,
    _fake_train,
)
_lp_norm_eval = register(
    f"lp_norm_eval(Tensor x, {_PARAMETERS}, Tensor running_mean, Tensor running_norm, float p, float eps) -> Tensor",
    _eval,
    _fake_eval,
)
_lp_norm_backward = register(
    f"lp_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? peak, {_PARAMETERS}, float p, float eps,"
    " bool evaluating, bool[3] output_mask) -> (Tensor dx, Tensor dw, Tensor db)",
    _backward,
    _fake_backward,
)

# ----------------------------------------------------------------------------------------------- their derivatives


def _derive(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    """(dx, dw, db) by what each input needs, from tensors saved as x, weight, bias, mean, rstd, peak."""
    x, weight, bias, *saved = ctx.saved_tensors
    needs = ctx.needs_input_grad
    mask = [needs[0], weight is not None and needs[1], bias is not None and needs[2]]
    found = _lp_norm_backward(dy, x, *saved, weight, bias, ctx.p, ctx.eps, ctx.evaluating, mask)
    return [t if m else None for t, m in zip(found, mask, strict=True)]


def _save_train(ctx: Any, inputs: tuple[Any, ...], output: Quadruple) -> None:
    x, weight, bias, _, _, ctx.p, _, ctx.eps = inputs
    ctx.evaluating = False
    ctx.save_for_backward(x, weight, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _derive_train(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_derive(ctx, dy), *[None] * 5


def _save_eval(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, running_mean, running_norm, ctx.p, ctx.eps = inputs
    ctx.evaluating = True
    ctx.save_for_backward(x, weight, bias, running_mean, running_norm, None)


def _derive_eval(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return *_derive(ctx, dy), *[None] * 4


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    dy, x, mean, rstd, _, weight, _, ctx.p, ctx.eps, ctx.evaluating, ctx.mask = inputs
    statistics = (mean, rstd) if ctx.evaluating else ()
    ctx.save_for_backward(dy, x, weight, *statistics)


def _derive_backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    dy, x, weight, *statistics = ctx.saved_tensors
    formula: Any = reference.lp_norm_eval if ctx.evaluating else reference.lp_norm

    def gradients(dy: Tensor, x: Tensor, weight: Tensor | None) -> list[Tensor | None]:
        truth = formula(x, *statistics, weight, None, ctx.p, ctx.eps, dy)
        return [truth[k] if m else None for k, m in zip(("dx", "dw", "db"), ctx.mask, strict=True)]

    ddy, dx, dw = gradient_of(gradients, (dy, x, weight), upstream)
    return ddy, dx, None, None, None, dw, *[None] * 5


differentiate(_lp_norm_train, _derive_train, _save_train)
differentiate(_lp_norm_eval, _derive_eval, _save_eval)
differentiate(_lp_norm_backward, _derive_backward, _save_backward)

# -------------------------------------------------------------------------------------------------- for models


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
    """Centres each channel over the batch and all positions, and divides by its average l_p norm before that.

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


class _LpNorm(nn.Module):
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_norm: Tensor | None
    num_batches_tracked: Tensor | None

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
        super().__init__()
        if p not in ORDERS:
            raise ValueError(f"p must be 1, 2 or inf, not {p!r}")
        self.num_features, self.p, self.eps, self.momentum = num_features, p, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        for name in ("weight", "bias"):
            self.register_parameter(name, nn.Parameter(torch.empty(num_features, **kind)) if affine else None)
        for name in ("running_mean", "running_norm"):
            self.register_buffer(name, torch.empty(num_features, **kind) if track_running_stats else None)
        count = torch.zeros((), dtype=torch.long, device=device)
        self.register_buffer("num_batches_tracked", count if track_running_stats else None)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """A mean of 0 and a norm of 1, of no batch."""
        for buffer, value in ((self.running_mean, 0), (self.running_norm, 1), (self.num_batches_tracked, 0)):
            if buffer is not None:
                buffer.fill_(value)

    def reset_parameters(self) -> None:
        """Weights of 1, biases of 0, and the running statistics as in `reset_running_stats`."""
        self.reset_running_stats()
        for parameter, value in ((self.weight, 1), (self.bias, 0)):
            if parameter is not None:
                nn.init.constant_(parameter, value)

    def extra_repr(self) -> str:
        names = ("p", "eps", "momentum", "affine", "track_running_stats")
        return ", ".join([str(self.num_features), *(f"{name}={getattr(self, name)}" for name in names)])

    def forward(self, input: Tensor) -> Tensor:
        """input: (N, C, *); returns the same shape, dtype and layout."""
        self._check_input_dim(input)
        buffers, training, momentum = step(self, "running_norm")
        return lp_norm(input, *buffers, self.weight, self.bias, training, momentum, self.eps, self.p)

    def _check_input_dim(self, input: Tensor) -> None:
        raise NotImplementedError


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
