"""The operators behind layer norm and RMS norm, which differ in whether the mean is taken out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor

from normlib.backend import serves
from normlib.kernels import row_norm as kernels
from normlib.registration import autocast_to_float32, differentiate, gradient_of, register, statistics_dtype

Triple = tuple[Tensor, Tensor, Tensor]


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


def register_row_norm(name: str, centred: bool, reference: Callable[..., dict[str, Tensor]]) -> Any:
    """Registers `normlib::<name>`: (y, mean (2, M) or (0,), rstd (M,)) of x (*, *normalized_shape); and its backward.

    The backward, `normlib::<name>_backward`, gives (dx, dw, db), with an empty tensor where output_mask asks for none.
    It can itself be differentiated, through the float64 formula `reference`.
    """

    def forward(
        x: Tensor, normalized_shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Triple:
        weight, bias = (None if p is None else p.contiguous() for p in (weight, bias))
        return kernels.forward(x, weight, bias, eps, centred, prod(normalized_shape))

    def fake_forward(
        x: Tensor, normalized_shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Triple:
        rows = x.numel() // prod(normalized_shape)
        mean = x.new_empty((2, rows) if centred else (0,), dtype=statistics_dtype(x))
        return x.new_empty(x.shape), mean, mean.new_empty((rows,))

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
    ) -> Triple:
        flat = None if weight is None else weight.contiguous()
        dw_dtype, db_dtype = (
            p.dtype if p is not None and m else None for p, m in zip((weight, bias), output_mask[1:], strict=True)
        )
        n = prod(normalized_shape)
        found = kernels.backward(dy, x, mean, rstd, flat, centred, n, dw_dtype, db_dtype, output_mask[0])
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
    ) -> Triple:
        dx, dw, db = (
            t.new_empty(t.shape) if m and t is not None else x.new_empty(0)
            for t, m in zip((x, weight, bias), output_mask, strict=True)
        )
        return dx, dw, db

    forward_op = register(
        f"{name}(Tensor x, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps)"
        " -> (Tensor y, Tensor mean, Tensor rstd)",
        forward,
        fake_forward,
    )
    backward_op = register(
        f"{name}_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, SymInt[] normalized_shape, Tensor? weight,"
        " Tensor? bias, float eps, bool[3] output_mask) -> (Tensor dx, Tensor dw, Tensor db)",
        backward,
        fake_backward,
    )

    def save(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
        x, ctx.normalized_shape, weight, bias, ctx.eps = inputs
        _, mean, rstd = output
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.mark_non_differentiable(mean, rstd)

    def derive(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Any, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        needs = ctx.needs_input_grad
        mask = [needs[0], weight is not None and needs[2], bias is not None and needs[3]]
        found = backward_op(dy, x, mean, rstd, ctx.normalized_shape, weight, bias, ctx.eps, mask)
        dx, dw, db = (t if m else None for t, m in zip(found, mask, strict=True))
        return dx, None, dw, db, None

    def save_backward(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
        dy, x, _, _, ctx.normalized_shape, weight, _, ctx.eps, ctx.mask = inputs
        ctx.save_for_backward(dy, x, weight)

    def derive_backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        def gradients(dy: Tensor, x: Tensor, weight: Tensor | None) -> list[Tensor | None]:
            truth = reference(x, ctx.normalized_shape, weight, None, ctx.eps, dy)
            return [truth[k] if m else None for k, m in zip(("dx", "dw", "db"), ctx.mask, strict=True)]

        ddy, dx, dw = gradient_of(gradients, ctx.saved_tensors, upstream)
        return ddy, dx, None, None, None, dw, None, None, None

    differentiate(forward_op, derive, save)
    differentiate(backward_op, derive_backward, save_backward)
    autocast_to_float32(forward_op)
    return forward_op
