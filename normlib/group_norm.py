"""Group normalization: each image's channels in groups, normalized one by one (Wu and He 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normlib import reference
from normlib.backend import serves
from normlib.channels import contiguous, like_input
from normlib.kernels.group_norm import launch as kernels
from normlib.kernels.numerics import statistics_dtype
from normlib.registration import autocast_as_pytorch, differentiate, gradient_of, register

Triple = tuple[Tensor, Tensor, Tensor]


# ------------------------------------------------------------------------------------------------ the operators


def _forward(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Triple:
    return kernels.group_norm_forward(x, groups, contiguous(weight), contiguous(bias), eps)


def fake_forward(x: Tensor, groups: int, *_: Any) -> Triple:
    """The shapes of (y, mean (2, N * groups), rstd (N * groups,))."""
    statistics = x.shape[0] * groups
    mean = x.new_empty((2, statistics), dtype=statistics_dtype(x))
    return like_input(x), mean, mean.new_empty((statistics,))


def _backward(
    dy: Tensor,
    x: Tensor,
    groups: int,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    output_mask: list[bool],
) -> Triple:
    dw_dtype, db_dtype = (
        p.dtype if p is not None and m else None for p, m in zip((weight, bias), output_mask[1:], strict=True)
    )
    statistics = (mean.contiguous(), rstd.contiguous())
    found = kernels.group_norm_backward(
        dy, x, groups, *statistics, contiguous(weight), dw_dtype, db_dtype, need_dx=output_mask[0]
    )
    dx, dw, db = (x.new_empty(0) if t is None else t for t in found)
    return dx, dw, db


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    groups: int,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    output_mask: list[bool],
) -> Triple:
    dx = like_input(x) if output_mask[0] else x.new_empty(0)
    dw, db = (
        p.new_empty(p.shape) if m and p is not None else x.new_empty(0)
        for p, m in zip((weight, bias), output_mask[1:], strict=True)
    )
    return dx, dw, db


_PARAMETERS = "Tensor? weight, Tensor? bias, float eps"

_group_norm = register(
    f"group_norm(Tensor x, int groups, {_PARAMETERS}) -> (Tensor y, Tensor mean, Tensor rstd)",
    _forward,
    fake_forward,
)
_group_norm_backward = register(
    f"group_norm_backward(Tensor dy, Tensor x, int groups, Tensor mean, Tensor rstd, {_PARAMETERS},"
    " bool[3] output_mask) -> (Tensor dx, Tensor dw, Tensor db)",
    _backward,
    _fake_backward,
)


def gradients(ctx: Any, dy: Tensor, groups: int, needs: tuple[bool, bool, bool]) -> list[Tensor | None]:
    """(dx, dw, db) by what x, weight and bias need, from tensors saved as x, weight, bias, mean, rstd."""
    x, weight, bias, mean, rstd = ctx.saved_tensors
    mask = [needs[0], weight is not None and needs[1], bias is not None and needs[2]]
    found = _group_norm_backward(dy, x, groups, mean, rstd, weight, bias, ctx.eps, mask)
    return [t if m else None for t, m in zip(found, mask, strict=True)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    x, ctx.groups, weight, bias, ctx.eps = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _derive(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    of_x, _, of_weight, of_bias, _ = ctx.needs_input_grad
    dx, dw, db = gradients(ctx, dy, ctx.groups, (of_x, of_weight, of_bias))
    return dx, None, dw, db, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    dy, x, ctx.groups, _, _, weight, _, ctx.eps, ctx.mask = inputs
    ctx.save_for_backward(dy, x, weight)


def _derive_backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    def formula(dy: Tensor, x: Tensor, weight: Tensor | None) -> list[Tensor | None]:
        truth = reference.group_norm(x, ctx.groups, weight, None, ctx.eps, dy)
        return [truth[k] if m else None for k, m in zip(("dx", "dw", "db"), ctx.mask, strict=True)]

    ddy, dx, dw = gradient_of(formula, ctx.saved_tensors, upstream)
    return ddy, dx, None, None, None, dw, None, None, None


differentiate(_group_norm, _derive, _save)
differentiate(_group_norm_backward, _derive_backward, _save_backward)
autocast_as_pytorch(_group_norm)

# -------------------------------------------------------------------------------------------------- for models


def _fits(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> bool:
    """Whether the kernels can take these arguments; if not, PyTorch computes it, or says what is wrong."""
    if not (serves(x, weight, bias) and isinstance(groups, int) and isinstance(eps, (float, int))):
        return False
    return (
        x.dim() >= 2
        and groups > 0
        and x.shape[1] > 0
        and x.shape[1] % groups == 0
        and x.numel() != groups  # one element a group and one image, which PyTorch refuses
        and all(p is None or (p.dim() == 1 and p.shape[0] == x.shape[1]) for p in (weight, bias))
    )


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalizes each image's channels in `num_groups` groups, over all positions: `torch.nn.functional.group_norm`.

    input: (N, C, *) in float32, float16, bfloat16 or float64, contiguous or channels-last (kept in the result), C a
    multiple of num_groups; weight, bias: (C,) in input's dtype, or float32 beside a 16-bit input. Returns input's shape
    and dtype. Bad shapes, dtypes and numbers of groups raise what PyTorch raises.

    Wu and He, "Group normalization" (2018), equations 1, 2 and 7.
    """
    if not _fits(input, num_groups, weight, bias, eps):
        return torch.nn.functional.group_norm(input, num_groups, weight, bias, eps)
    result: Tensor = _group_norm(input, num_groups, weight, bias, eps)[0]
    return result


class GroupNorm(torch.nn.GroupNorm):
    """`torch.nn.GroupNorm` on the Triton kernels: same arguments, parameters and state_dict."""

    def forward(self, input: Tensor) -> Tensor:
        """input: (N, C, *); returns the same shape, dtype and layout."""
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
