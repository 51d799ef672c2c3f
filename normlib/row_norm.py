"""The operators behind layer norm and RMS norm, which differ in whether the mean is taken out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor

from normlib.backend import serves
from normlib.kernels.numerics import statistics_dtype
from normlib.kernels.row_norm import launch as kernels
from normlib.registration import autocast_as_pytorch, differentiate, gradient_of, register

Triple = tuple[Tensor, Tensor, Tensor]
Quadruple = tuple[Tensor, Tensor, Tensor, Tensor]


def fits(x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> bool:
    """Whether the kernels can take these arguments; if not, PyTorch computes it, or says what is wrong."""
    if not (serves(x, weight, bias) and isinstance(normalized_shape, (list, tuple)) and isinstance(eps, (float, int))):
        return False
    shape = tuple(normalized_shape)
    return (
        0 < len(shape) <= x.dim()
        and tuple(x.shape[-len(shape) :]) == shape
        and prod(shape) > 0
        and all(p is None or tuple(p.shape) == shape for p in (weight, bias))
    )


def adds(x: Tensor, residual: Tensor) -> bool:
    """Whether the kernels can add this residual to x, if x `fits`; ValueError where it is not like x."""
    if (residual.shape, residual.dtype, residual.device) != (x.shape, x.dtype, x.device):
        wanted, found = (f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in (x, residual))
        raise ValueError(f"residual must have input's shape, dtype and device, {wanted}; got {found}")
    # Under autocast the sum stays in its dtype, and only the norm computes in float32.
    return serves(residual) and not torch.is_autocast_enabled(x.device.type)


def register_row_norm(name: str, centred: bool, reference: Callable[..., dict[str, Tensor]]) -> tuple[Any, Any]:
    """Registers and returns `normlib::<name>` and `normlib::<name>_add`; registers their backward, `<name>_backward`.

    The first gives (y, mean (2, M) or (0,), rstd (M,)) of x (*, *normalized_shape); the second takes a residual like x
    and gives (y, z, mean, rstd), z being x + residual, which is what it normalizes. With `zero_centred` 1 + weight
    scales. The first, unless `centred`, also takes a `partial`, the part of a row that its statistic is of.

    The backward gives (dx, dw, db), with an empty tensor where output_mask asks for none; dz is added to dx. It can
    itself be differentiated, through the float64 formula `reference`.
    """

    def forward(
        x: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        zero_centred: bool = False,
        partial: float = 1.0,
    ) -> Triple:
        weight, bias = (None if p is None else p.contiguous() for p in (weight, bias))
        n = prod(normalized_shape)
        return kernels.forward(x, weight, bias, eps, centred, n, zero_centred=zero_centred, partial_n=ceil(partial * n))

    def fake_forward(x: Tensor, normalized_shape: list[int], *_: Any) -> Triple:
        rows = x.numel() // prod(normalized_shape)
        mean = x.new_empty((2, rows) if centred else (0,), dtype=statistics_dtype(x))
        return x.new_empty(x.shape), mean, mean.new_empty((rows,))

    def forward_add(
        x: Tensor,
        residual: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        zero_centred: bool = False,
    ) -> Quadruple:
        weight, bias = (None if p is None else p.contiguous() for p in (weight, bias))
        z = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        n = prod(normalized_shape)
        y, mean, rstd = kernels.forward(
            x, weight, bias, eps, centred, n, residual=residual, z=z, zero_centred=zero_centred
        )
        return y, z, mean, rstd

    def fake_forward_add(x: Tensor, residual: Tensor, normalized_shape: list[int], *_: Any) -> Quadruple:
        y, mean, rstd = fake_forward(x, normalized_shape)
        return y, x.new_empty(x.shape), mean, rstd

    def backward(
        dy: Tensor,
        x: Tensor,
        mean: Tensor,
        rstd: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        output_mask: list[bool],
        dz: Tensor | None = None,
        zero_centred: bool = False,
        partial: float = 1.0,
    ) -> Triple:
        flat = None if weight is None else weight.contiguous()
        dw_dtype, db_dtype = (
            p.dtype if p is not None and m else None for p, m in zip((weight, bias), output_mask[1:], strict=True)
        )
        n = prod(normalized_shape)
        found = kernels.backward(
            *(dy, x, mean, rstd, flat, centred, n, dw_dtype, db_dtype, output_mask[0]),
            dz=dz,
            zero_centred=zero_centred,
            partial_n=ceil(partial * n),
        )
        dx, dw, db = (x.new_empty(0) if t is None else t for t in found)
        dw, db = (t.view(normalized_shape) if t.numel() else t for t in (dw, db))
        return dx, dw, db

    def fake_backward(
        dy: Tensor,
        x: Tensor,
        mean: Tensor,
        rstd: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        output_mask: list[bool],
        *_: Any,
    ) -> Triple:
        dx, dw, db = (
            t.new_empty(t.shape) if m and t is not None else x.new_empty(0)
            for t, m in zip((x, weight, bias), output_mask, strict=True)
        )
        return dx, dw, db

    parameters = "SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps"
    part = "" if centred else ", float partial=1.0"
    forward_op = register(
        f"{name}(Tensor x, {parameters}, bool zero_centred=False{part}) -> (Tensor y, Tensor mean, Tensor rstd)",
        forward,
        fake_forward,
    )
    add_op = register(
        f"{name}_add(Tensor x, Tensor residual, {parameters}, bool zero_centred=False)"
        " -> (Tensor y, Tensor z, Tensor mean, Tensor rstd)",
        forward_add,
        fake_forward_add,
    )
    backward_op = register(
        f"{name}_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, {parameters}, bool[3] output_mask,"
        f" Tensor? dz=None, bool zero_centred=False{part}) -> (Tensor dx, Tensor dw, Tensor db)",
        backward,
        fake_backward,
    )

    # zero_centred and partial; an operator's arguments come without those at the end that have their default.
    def save(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
        x, ctx.normalized_shape, weight, bias, ctx.eps, *ctx.options = inputs
        _, mean, rstd = output
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.mark_non_differentiable(mean, rstd)

    def save_add(ctx: Any, inputs: tuple[Any, ...], output: Quadruple) -> None:
        y, z, mean, rstd = output
        save(ctx, (z, *inputs[2:]), (y, mean, rstd))
        ctx.set_materialize_grads(False)

    def gradients(ctx: Any, dy: Tensor, mask: list[bool], dz: Tensor | None = None) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        dz = dz if mask[0] else None
        arguments = (dy, x, mean, rstd, ctx.normalized_shape, weight, bias, ctx.eps, mask, dz, *ctx.options)
        return tuple(t if m else None for t, m in zip(backward_op(*arguments), mask, strict=True))

    def derive(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Any, ...]:
        of_x, _, of_weight, of_bias, *_ = ctx.needs_input_grad
        dx, dw, db = gradients(ctx, dy, [of_x, of_weight, of_bias])
        return dx, None, dw, db, None, None, None

    def derive_add(ctx: Any, dy: Tensor | None, dz: Tensor | None, *_: Tensor) -> tuple[Any, ...]:
        of_x, of_residual, _, of_weight, of_bias, *_ = ctx.needs_input_grad
        # Where y was not used there is no norm to go back through.
        stream, dw, db = dz, None, None
        if dy is not None:
            stream, dw, db = gradients(ctx, dy, [of_x or of_residual, of_weight, of_bias], dz)
        return stream if of_x else None, stream if of_residual else None, None, dw, db, None, None

    def save_backward(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
        dy, x, _, _, ctx.normalized_shape, weight, _, ctx.eps, ctx.mask, *more = inputs
        dz, *ctx.options = more or (None,)
        ctx.save_for_backward(dy, x, weight, dz)

    def derive_backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        def formula(dy: Tensor, x: Tensor, weight: Tensor | None, dz: Tensor | None) -> list[Tensor | None]:
            truth = reference(x, ctx.normalized_shape, weight, None, ctx.eps, dy, dz, *ctx.options)
            return [truth[k] if m else None for k, m in zip(("dx", "dw", "db"), ctx.mask, strict=True)]

        ddy, dx, dw, ddz = gradient_of(formula, ctx.saved_tensors, upstream)
        return ddy, dx, None, None, None, dw, None, None, None, ddz, None, None

    differentiate(forward_op, derive, save)
    differentiate(add_op, derive_add, save_add)
    differentiate(backward_op, derive_backward, save_backward)
    autocast_as_pytorch(forward_op)
    return forward_op, add_op
