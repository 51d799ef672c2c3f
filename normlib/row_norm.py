"""The operators of layer norm and RMS norm, which differ in whether the mean is subtracted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import Any, cast

import torch
from torch import Tensor

from normlib.dispatch import (
    CustomOperator,
    LazyModule,
    Quadruple,
    Triple,
    autocast_as_pytorch,
    backward_operator,
    by_mask,
    check_residual,
    contiguous,
    derive_again,
    derive_by,
    differentiate,
    dtypes_by_mask,
    serves,
)
from normlib.kernels.host import statistics_dtype

kernels = LazyModule("normlib.kernels.row_norm.launch")


def fits(x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> bool:
    """Returns True if the kernels can take these arguments."""
    if not (serves(x, weight, bias) and isinstance(normalized_shape, (list, tuple)) and isinstance(eps, (float, int))):
        return False
    shape = tuple(normalized_shape)
    if not (0 < len(shape) <= x.dim() and x.shape[-len(shape) :] == shape and prod(shape) > 0):
        return False
    return (weight is None or weight.shape == shape) and (bias is None or bias.shape == shape)


def adds(x: Tensor, residual: Tensor) -> bool:
    """Returns True if the kernels can add this residual to an x that `fits`; ValueError where it is not like x."""
    check_residual(x, residual)
    # Under autocast the sum stays in its dtype, and only the norm computes in float32.
    return serves(residual) and not torch.is_autocast_enabled(x.device.type)


def register_row_norm(
    name: str, centred: bool, reference: Callable[..., dict[str, Tensor]]
) -> tuple[CustomOperator, CustomOperator]:
    """Registers and returns `normlib::<name>` and `normlib::<name>_add`; registers their backward, `<name>_backward`.

    The first returns (y, mean (2, M) or (0,), rstd (M,)) of x (*, *normalized_shape); the second takes a residual like
    x and returns (y, z, mean, rstd), where z = x + residual is what it normalizes. With `zero_centred` 1 + weight
    scales. The statistic of the first is that of the `partial` part of each row; layer norm has no such part.

    The backward operator returns (dx, dw, db); dz is added to dx. Its own derivative is that of the float64 formula
    `reference`.
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
        n = prod(normalized_shape)
        options: dict[str, Any] = {"zero_centred": zero_centred, "partial_n": part(partial, n)}
        return kernels.forward(x, contiguous(weight), contiguous(bias), eps, centred, n, **options)

    def part(partial: float, n: int) -> int:
        if centred and partial != 1.0:
            raise ValueError(f"{name} has no partial, got {partial}")
        return ceil(partial * n)

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
        z = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        options: dict[str, Any] = {"residual": residual, "z": z, "zero_centred": zero_centred}
        parameters = (contiguous(weight), contiguous(bias), eps, centred, prod(normalized_shape))
        y, mean, rstd = kernels.forward(x, *parameters, **options)
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
        n, dtypes = prod(normalized_shape), dtypes_by_mask(weight, bias, output_mask)
        options: dict[str, Any] = {"dz": dz, "zero_centred": zero_centred, "partial_n": part(partial, n)}
        given = (dy, x, mean, rstd, contiguous(weight), centred, n)
        dx, *of_parameters = kernels.backward(*given, *dtypes, output_mask[0], **options)
        found = (dx, *(None if t is None else t.view(normalized_shape) for t in of_parameters))
        return cast(Triple, by_mask(found, (x, weight, bias), output_mask))

    def formula(
        dy: Tensor,
        x: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None,
        eps: float,
        dz: Tensor | None,
        zero_centred: bool,
        partial: float,
    ) -> dict[str, Tensor]:
        options = (zero_centred,) if centred else (zero_centred, partial)
        return reference(x, normalized_shape, weight, None, eps, dy, dz, *options)

    forward_op = CustomOperator(name, forward, fake_forward)
    add_op = CustomOperator(f"{name}_add", forward_add, fake_forward_add)
    backward_op = backward_operator(f"{name}_backward", backward, empty=lambda x: x.new_empty(x.shape))

    def save_add(ctx: Any, inputs: tuple[Any, ...], output: Quadruple) -> None:
        _, _, *ctx.row, weight, bias, ctx.eps, ctx.zero_centred = inputs
        _, z, mean, rstd = output
        ctx.save_for_backward(z, mean, rstd, weight, bias)
        ctx.mark_non_differentiable(mean, rstd)

    def derive_add(ctx: Any, dy: Tensor | None, dz: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_residual, _, of_weight, of_bias, *_ = ctx.needs_input_grad
        stream, dw, db = dz, None, None
        if dy is not None:  # else y was not used, and there is no norm to go back through
            z, mean, rstd, weight, bias = ctx.saved_tensors
            mask = [of_x or of_residual, of_weight, of_bias]
            arguments = (*ctx.row, weight, bias, ctx.eps, mask, dz if mask[0] else None, ctx.zero_centred)
            found = backward_op(dy, z, mean, rstd, *arguments)
            stream, dw, db = (t if m else None for t, m in zip(found, mask, strict=True))
        return stream if of_x else None, stream if of_residual else None, None, dw, db, None, None

    derive_by(forward_op, backward_op, dz=None)
    differentiate(add_op, save_add, derive_add)
    derive_again(backward_op, formula)
    autocast_as_pytorch(forward_op)
    return forward_op, add_op
