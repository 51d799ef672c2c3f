"""The operators of relu(batch norm + residual) and their derivatives.

Signs, a bit an element, are a result of their own; empty where they are not kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normlib.batch_norm_operators import (
    BUFFERS,
    GIVEN,
    PARAMETERS,
    backward,
    evaluate,
    fake_backward,
    fake_eval,
    fake_train,
    train,
    truth_of,
)
from normlib.channels import like_input
from normlib.kernels.batch_norm import launch as kernels
from normlib.registration import differentiate, gradient_of, register

Pair = tuple[Tensor, Tensor]
Quadruple = tuple[Tensor, Tensor, Tensor, Tensor]


def _train_add_relu(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    keep_signs: bool,
    pre_relu: bool,
) -> Quadruple:
    signs = kernels.empty_signs(x) if keep_signs else None
    arguments = (weight, bias, running_mean, running_var, momentum, eps, True, pre_relu, residual, signs)
    y, mean, rstd = train(x, *arguments)
    return y, _present(signs, x), mean, rstd


def _fake_train_add_relu(x: Tensor, residual: Tensor, *arguments: Any) -> Quadruple:
    y, mean, rstd = fake_train(x)
    return y, _present(kernels.empty_signs(x) if arguments[-2] else None, x), mean, rstd


def _eval_add_relu(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    keep_signs: bool,
    pre_relu: bool,
) -> Pair:
    signs = kernels.empty_signs(x) if keep_signs else None
    arguments = (weight, bias, running_mean, running_var, eps, True, pre_relu, residual, signs)
    return evaluate(x, *arguments), _present(signs, x)


def _fake_eval_add_relu(x: Tensor, residual: Tensor, *arguments: Any) -> Pair:
    return fake_eval(x), _present(kernels.empty_signs(x) if arguments[-2] else None, x)


def _present(signs: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0, dtype=torch.uint8) if signs is None else signs


def _backward_add_relu(
    dy: Tensor,
    x: Tensor,
    signs: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    evaluating: bool,
    output_mask: list[bool],
    pre_relu: bool,
) -> Quadruple:
    of_x, of_residual, *of_parameters = output_mask
    dz = like_input(x) if of_residual else None
    mask = [of_x, *of_parameters]
    dx, dw, db = backward(dy, x, mean, rstd, weight, bias, eps, evaluating, mask, True, pre_relu, signs, dz)
    return dx, x.new_empty(0) if dz is None else dz, dw, db


def _fake_backward_add_relu(dy: Tensor, x: Tensor, signs: Tensor, *arguments: Any) -> Quadruple:
    *given, output_mask, _ = arguments
    of_x, of_residual, *of_parameters = output_mask
    dx, dw, db = fake_backward(dy, x, *given, [of_x, *of_parameters])
    return dx, like_input(x) if of_residual else x.new_empty(0), dw, db


add_relu_train = register(
    f"batch_norm_add_relu_train(Tensor x, Tensor residual, {PARAMETERS}, {BUFFERS}, float eps,"
    " bool keep_signs, bool pre_relu) -> (Tensor y, Tensor signs, Tensor mean, Tensor rstd)",
    _train_add_relu,
    _fake_train_add_relu,
)
add_relu_eval = register(
    f"batch_norm_add_relu_eval(Tensor x, Tensor residual, {PARAMETERS}, {GIVEN}, float eps,"
    " bool keep_signs, bool pre_relu) -> (Tensor y, Tensor signs)",
    _eval_add_relu,
    _fake_eval_add_relu,
)
_add_relu_backward = register(
    f"batch_norm_add_relu_backward(Tensor dy, Tensor x, Tensor signs, Tensor mean, Tensor rstd, {PARAMETERS},"
    " float eps, bool evaluating, bool[4] output_mask, bool pre_relu)"
    " -> (Tensor dx, Tensor dresidual, Tensor dw, Tensor db)",
    _backward_add_relu,
    _fake_backward_add_relu,
)

# --------------------------------------------------------------------------------------------------- their derivatives


def _derive_add_relu(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, signs, weight, bias, mean, rstd = ctx.saved_tensors
    of_x, of_residual, of_weight, of_bias, *rest = ctx.needs_input_grad
    mask = [of_x, of_residual, weight is not None and of_weight, bias is not None and of_bias]
    found = _add_relu_backward(dy, x, signs, mean, rstd, weight, bias, ctx.eps, ctx.evaluating, mask, ctx.pre_relu)
    return *(t if m else None for t, m in zip(found, mask, strict=True)), *[None] * len(rest)


def _save_add_relu_train(ctx: Any, inputs: tuple[Any, ...], output: Quadruple) -> None:
    x, _, weight, bias, _, _, _, ctx.eps, _, ctx.pre_relu = inputs
    ctx.evaluating = False
    ctx.save_for_backward(x, output[1], weight, bias, *output[2:])
    ctx.mark_non_differentiable(*output[1:])


def _save_add_relu_eval(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
    x, _, weight, bias, running_mean, running_var, ctx.eps, _, ctx.pre_relu = inputs
    ctx.evaluating = True
    ctx.save_for_backward(x, output[1], weight, bias, running_mean, running_var)
    ctx.mark_non_differentiable(output[1])


def _save_backward_add_relu(ctx: Any, inputs: tuple[Any, ...], output: Quadruple) -> None:
    dy, x, signs, mean, rstd, weight, _, ctx.eps, ctx.evaluating, ctx.mask, ctx.pre_relu = inputs
    ctx.save_for_backward(dy, x, signs, mean, rstd, weight)


def _derive_backward_add_relu(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    dy, x, signs, mean, rstd, weight = ctx.saved_tensors
    statistics = (mean, rstd) if ctx.evaluating else (None, None)
    with torch.no_grad():  # the signs as ones and zeros: the residual's gradient where dy is one
        alone = (None, None, ctx.eps, ctx.evaluating, [False, True, False, False], ctx.pre_relu)
        passed = _add_relu_backward(torch.ones_like(dy), x, signs, mean, rstd, *alone)[1]

    def gradients(dy: Tensor, x: Tensor, weight: Tensor | None) -> list[Tensor | None]:
        dz = torch.where(passed == 0, 0.0, dy)
        truth = truth_of(statistics, x, weight, None, ctx.eps, dz, None, False, ctx.pre_relu)
        return [truth[k] if m else None for k, m in zip(("dx", "dz", "dw", "db"), ctx.mask, strict=True)]

    ddy, dx, dw = gradient_of(gradients, (dy, x, weight), upstream)
    return ddy, dx, None, None, None, dw, *[None] * 5


differentiate(add_relu_train, _derive_add_relu, _save_add_relu_train)
differentiate(add_relu_eval, _derive_add_relu, _save_add_relu_eval)
differentiate(_add_relu_backward, _derive_backward_add_relu, _save_backward_add_relu)
