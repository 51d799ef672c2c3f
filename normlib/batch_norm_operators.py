"""The operators of batch norm and their derivatives; with a residual see batch_norm_add_relu.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from normlib import reference
from normlib.channels import contiguous, like_input
from normlib.kernels.batch_norm import launch as kernels
from normlib.kernels.numerics import statistics_dtype
from normlib.registration import differentiate, gradient_of, register

Triple = tuple[Tensor, Tensor, Tensor]


def train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    relu: bool = False,
    pre_relu: bool = False,
    residual: Tensor | None = None,
    signs: Tensor | None = None,
) -> Triple:
    """(y, mean (2, C), rstd (C,)) of x (N, C, *), around which may stand ReLUs and a residual like x."""
    weight, bias = contiguous(weight), contiguous(bias)
    return kernels.batch_norm_forward(
        *(x, weight, bias, running_mean, running_var, momentum, eps),
        residual=residual,
        signs=signs,
        relu=relu,
        pre_relu=pre_relu,
    )


def fake_train(x: Tensor, *_: Any) -> Triple:
    """Their shapes."""
    channels = x.shape[1]
    mean = x.new_empty((2, channels), dtype=statistics_dtype(x))
    return like_input(x), mean, mean.new_empty((channels,))


def evaluate(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    relu: bool = False,
    pre_relu: bool = False,
    residual: Tensor | None = None,
    signs: Tensor | None = None,
) -> Tensor:
    """y with running statistics."""
    return kernels.batch_norm_eval_forward(
        *(x, contiguous(weight), contiguous(bias), running_mean.contiguous(), running_var.contiguous(), eps),
        residual=residual,
        signs=signs,
        relu=relu,
        pre_relu=pre_relu,
    )


def fake_eval(x: Tensor, *_: Any) -> Tensor:
    """Its shape."""
    return like_input(x)


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    evaluating: bool,
    output_mask: list[bool],
    relu: bool = False,
    pre_relu: bool = False,
    signs: Tensor | None = None,
    dz: Tensor | None = None,
) -> Triple:
    """(dx, dw, db) by output_mask, empty where not wanted; the gradient of a residual goes to dz."""
    found = kernels.batch_norm_backward(
        *(dy, x, mean.contiguous(), rstd.contiguous(), contiguous(weight), eps, evaluating),
        need_dx=output_mask[0],
        need_sums=any(output_mask[1:]),
        bias=contiguous(bias),
        signs=signs,
        dz=dz,
        relu=relu,
        pre_relu=pre_relu,
    )
    dx, dw, db = (
        t.to(like.dtype) if m and t is not None and like is not None else x.new_empty(0)
        for t, like, m in zip(found, (x, weight, bias), output_mask, strict=True)
    )
    return dx, dw, db


def fake_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    evaluating: bool,
    output_mask: list[bool],
    *_: Any,
) -> Triple:
    """Their shapes."""
    dx = like_input(x) if output_mask[0] else x.new_empty(0)
    dw, db = (
        p.new_empty(p.shape) if m and p is not None else x.new_empty(0)
        for p, m in zip((weight, bias), output_mask[1:], strict=True)
    )
    return dx, dw, db


PARAMETERS = "Tensor? weight, Tensor? bias"
BUFFERS = "Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum"
GIVEN = "Tensor running_mean, Tensor running_var"
_RELUS = "bool relu=False, bool pre_relu=False"

batch_norm_train = register(
    f"batch_norm_train(Tensor x, {PARAMETERS}, {BUFFERS}, float eps, {_RELUS}) -> (Tensor y, Tensor mean, Tensor rstd)",
    train,
    fake_train,
)
batch_norm_eval = register(
    f"batch_norm_eval(Tensor x, {PARAMETERS}, {GIVEN}, float eps, {_RELUS}) -> Tensor",
    evaluate,
    fake_eval,
)
_batch_norm_backward = register(
    f"batch_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, {PARAMETERS}, float eps,"
    f" bool evaluating, bool[3] output_mask, {_RELUS}) -> (Tensor dx, Tensor dw, Tensor db)",
    backward,
    fake_backward,
)

# --------------------------------------------------------------------------------------------------- their derivatives


def _derive(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    """(dx, dw, db) by what each input needs, from tensors saved as x, weight, bias, mean, rstd."""
    x, weight, bias, mean, rstd = ctx.saved_tensors
    needs = ctx.needs_input_grad
    mask = [needs[0], weight is not None and needs[1], bias is not None and needs[2]]
    found = _batch_norm_backward(dy, x, mean, rstd, weight, bias, ctx.eps, ctx.evaluating, mask, *ctx.relus)
    return [t if m else None for t, m in zip(found, mask, strict=True)]


# An operator's arguments come without those at the end that have their default.
def _save_train(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    x, weight, bias, _, _, _, ctx.eps, *ctx.relus = inputs
    ctx.evaluating = False
    ctx.save_for_backward(x, weight, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _derive_train(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_derive(ctx, dy), *[None] * 6


def _save_eval(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, running_mean, running_var, ctx.eps, *ctx.relus = inputs
    ctx.evaluating = True
    ctx.save_for_backward(x, weight, bias, running_mean, running_var)


def _derive_eval(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return *_derive(ctx, dy), *[None] * 5


def truth_of(statistics: tuple[Tensor | None, ...], x: Tensor, *arguments: Any) -> dict[str, Tensor]:
    """Float64's formula, of given statistics or, in training, none."""
    if statistics[0] is None:
        return reference.batch_norm(x, *arguments)
    return reference.batch_norm_eval(x, *statistics, *arguments)  # type: ignore[arg-type]


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    dy, x, mean, rstd, weight, bias, ctx.eps, ctx.evaluating, ctx.mask, *ctx.relus = inputs
    statistics = (mean, rstd) if ctx.evaluating else (None, None)
    ctx.save_for_backward(dy, x, weight, bias if any(ctx.relus) else None, *statistics)


def _derive_backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    dy, x, weight, bias, *statistics = ctx.saved_tensors

    def gradients(dy: Tensor, x: Tensor, weight: Tensor | None) -> list[Tensor | None]:
        truth = truth_of(statistics, x, weight, bias, ctx.eps, dy, None, *ctx.relus)
        return [truth[k] if m else None for k, m in zip(("dx", "dw", "db"), ctx.mask, strict=True)]

    ddy, dx, dw = gradient_of(gradients, (dy, x, weight), upstream)
    return ddy, dx, None, None, dw, *[None] * 6


differentiate(batch_norm_train, _derive_train, _save_train)
differentiate(batch_norm_eval, _derive_eval, _save_eval)
differentiate(_batch_norm_backward, _derive_backward, _save_backward)
