"""Batch normalization over all dimensions but the second (Ioffe and Szegedy 2015)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normlib import reference
from normlib.backend import serves
from normlib.kernels import batch_norm as kernels
from normlib.registration import differentiate, gradient_of, register, statistics_dtype

Triple = tuple[Tensor, Tensor, Tensor]


def _contiguous(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _like_input(x: Tensor) -> Tensor:
    """An empty result in the layout that the kernels give it: x's, where that is one of their two."""
    return torch.empty_like(kernels.dense(x)[0])


# ------------------------------------------------------------------------------------------------ the operators


def _train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Triple:
    weight, bias = _contiguous(weight), _contiguous(bias)
    return kernels.batch_norm_forward(x, weight, bias, running_mean, running_var, momentum, eps)


def _fake_train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Triple:
    channels = x.shape[1]
    mean = x.new_empty((2, channels), dtype=statistics_dtype(x))
    return _like_input(x), mean, mean.new_empty((channels,))


def _eval(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, eps: float
) -> Tensor:
    weight, bias = _contiguous(weight), _contiguous(bias)
    return kernels.batch_norm_eval_forward(x, weight, bias, running_mean.contiguous(), running_var.contiguous(), eps)


def _fake_eval(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, eps: float
) -> Tensor:
    return _like_input(x)


def _backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    evaluating: bool,
    output_mask: list[bool],
) -> Triple:
    found = kernels.batch_norm_backward(
        dy,
        x,
        mean.contiguous(),
        rstd.contiguous(),
        _contiguous(weight),
        eps,
        evaluating,
        need_dx=output_mask[0],
        need_sums=any(output_mask[1:]),
    )
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
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    evaluating: bool,
    output_mask: list[bool],
) -> Triple:
    dx = _like_input(x) if output_mask[0] else x.new_empty(0)
    dw, db = (
        p.new_empty(p.shape) if m and p is not None else x.new_empty(0)
        for p, m in zip((weight, bias), output_mask[1:], strict=True)
    )
    return dx, dw, db


_batch_norm_train = register(
    "batch_norm_train(Tensor x, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? running_var,"
    " float momentum, float eps) -> (Tensor y, Tensor mean, Tensor rstd)",
    _train,
    _fake_train,
)
_batch_norm_eval = register(
    "batch_norm_eval(Tensor x, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var, float eps)"
    " -> Tensor",
    _eval,
    _fake_eval,
)
_batch_norm_backward = register(
    "batch_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias, float eps,"
    " bool evaluating, bool[3] output_mask) -> (Tensor dx, Tensor dw, Tensor db)",
    _backward,
    _fake_backward,
)

# ----------------------------------------------------------------------------------------------- their derivatives


def _derive(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    """(dx, dw, db) by what each input needs, from tensors saved as x, weight, bias, mean, rstd."""
    x, weight, bias, mean, rstd = ctx.saved_tensors
    needs = ctx.needs_input_grad
    mask = [needs[0], weight is not None and needs[1], bias is not None and needs[2]]
    found = _batch_norm_backward(dy, x, mean, rstd, weight, bias, ctx.eps, ctx.evaluating, mask)
    return [t if m else None for t, m in zip(found, mask, strict=True)]


def _save_train(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    x, weight, bias, *_, ctx.eps = inputs
    ctx.evaluating = False
    ctx.save_for_backward(x, weight, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _derive_train(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_derive(ctx, dy), None, None, None, None


def _save_eval(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, running_mean, running_var, ctx.eps = inputs
    ctx.evaluating = True
    ctx.save_for_backward(x, weight, bias, running_mean, running_var)


def _derive_eval(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return *_derive(ctx, dy), None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    dy, x, mean, rstd, weight, _, ctx.eps, ctx.evaluating, ctx.mask = inputs
    statistics = (mean, rstd) if ctx.evaluating else (None, None)
    ctx.save_for_backward(dy, x, weight, *statistics)


def _derive_backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    dy, x, weight, running_mean, running_var = ctx.saved_tensors

    def gradients(dy: Tensor, x: Tensor, weight: Tensor | None) -> list[Tensor | None]:
        if ctx.evaluating:
            truth = reference.batch_norm_eval(x, running_mean, running_var, weight, None, ctx.eps, dy)
        else:
            truth = reference.batch_norm(x, weight, None, ctx.eps, dy)
        return [truth[k] if m else None for k, m in zip(("dx", "dw", "db"), ctx.mask, strict=True)]

    ddy, dx, dw = gradient_of(gradients, (dy, x, weight), upstream)
    return ddy, dx, None, None, dw, None, None, None, None


differentiate(_batch_norm_train, _derive_train, _save_train)
differentiate(_batch_norm_eval, _derive_eval, _save_eval)
differentiate(_batch_norm_backward, _derive_backward, _save_backward)

# -------------------------------------------------------------------------------------------------- for models


def _fits(x: Tensor, channel_vectors: tuple[Tensor | None, ...], training: bool, momentum: float, eps: float) -> bool:
    """Whether the kernels can take these arguments; if not, PyTorch computes it, or says what is wrong."""
    if not (serves(x, *channel_vectors) and isinstance(momentum, (float, int)) and isinstance(eps, (float, int))):
        return False
    running_mean, running_var = channel_vectors[2:]
    return (
        x.dim() >= 2
        and x.shape[1] > 0
        and all(v is None or (v.dim() == 1 and v.shape[0] == x.shape[1]) for v in channel_vectors)
        and (running_mean is None) == (running_var is None)
        and all(v is None or v.is_contiguous() for v in (running_mean, running_var))
        and (eps > 0.0 and x.numel() > x.shape[1] if training else eps >= 0.0 and running_mean is not None)
    )


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalizes each channel over the batch and all positions: `torch.nn.functional.batch_norm`.

    input: (N, C, *) in float32, float16, bfloat16 or float64, contiguous or channels-last (kept in the result);
    weight, bias, running_mean, running_var: (C,) in input's dtype, or float32 beside a 16-bit input. In training the
    batch's statistics are used (the biased variance), and the running buffers, if given, move by `momentum` towards
    them (the unbiased variance); otherwise the running buffers are used. Returns input's shape and dtype. Bad shapes,
    dtypes and eps raise what PyTorch raises, before any buffer changes.

    Ioffe and Szegedy, "Batch normalization" (2015), algorithms 1 and 2.
    """
    if not _fits(input, (weight, bias, running_mean, running_var), training, momentum, eps):
        return torch.nn.functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if training:
        y: Tensor = _batch_norm_train(input, weight, bias, running_mean, running_var, momentum, eps)[0]
    else:
        y = _batch_norm_eval(input, weight, bias, running_mean, running_var, eps)
    return y


class _BatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        """input: (N, C, *); returns the same shape, dtype and layout."""
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        tracking = self.training and self.track_running_stats
        momentum = 0.0 if self.momentum is None else self.momentum
        if tracking and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # a cumulative average
                momentum = 1.0 / float(self.num_batches_tracked)
        given = not self.training or self.track_running_stats
        return batch_norm(
            input,
            self.running_mean if given else None,
            self.running_var if given else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
        )


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` on the Triton kernels: same arguments, parameters, buffers and state_dict."""


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` on the Triton kernels: same arguments, parameters, buffers and state_dict."""


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` on the Triton kernels: same arguments, parameters, buffers and state_dict."""
