"""Weight normalization: w = g v / ||v|| (Salimans and Kingma 2016), a function and a parametrization of layers."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.utils import parametrizations

from normlib import composed, reference
from normlib.backend import serves
from normlib.kernels import weight_norm as kernels
from normlib.kernels.numerics import statistics_dtype
from normlib.registration import differentiate, gradient_of, register

Pair = tuple[Tensor, Tensor]
Module = TypeVar("Module", bound=torch.nn.Module)


# ------------------------------------------------------------------------------------------------ the operators
# Of rows: x (M, *) is v, weight, of M elements, is g, and y is w.


def _forward(x: Tensor, weight: Tensor) -> Pair:
    return kernels.forward(x, weight.contiguous())


def _fake_forward(x: Tensor, weight: Tensor) -> Pair:
    return x.new_empty(x.shape), x.new_empty((2, x.shape[0]), dtype=statistics_dtype(x))


def _backward(dy: Tensor, x: Tensor, norm: Tensor, weight: Tensor, output_mask: list[bool]) -> Pair:
    found = kernels.backward(dy, x, norm, weight.contiguous(), need_dx=output_mask[0], need_dw=output_mask[1])
    dx, dw = (x.new_empty(0) if t is None else t for t in found)
    return dx, dw


def _fake_backward(dy: Tensor, x: Tensor, norm: Tensor, weight: Tensor, output_mask: list[bool]) -> Pair:
    dx, dw = (t.new_empty(t.shape) if m else x.new_empty(0) for t, m in zip((x, weight), output_mask, strict=True))
    return dx, dw


_weight_norm = register("weight_norm(Tensor x, Tensor weight) -> (Tensor y, Tensor norm)", _forward, _fake_forward)
_weight_norm_backward = register(
    "weight_norm_backward(Tensor dy, Tensor x, Tensor norm, Tensor weight, bool[2] output_mask)"
    " -> (Tensor dx, Tensor dw)",
    _backward,
    _fake_backward,
)


def _save(ctx: Any, inputs: Pair, output: Pair) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _derive(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, norm = ctx.saved_tensors
    mask = list(ctx.needs_input_grad)
    found = _weight_norm_backward(dy, x, norm, weight, mask)
    return tuple(t if m else None for t, m in zip(found, mask, strict=True))


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
    dy, x, _, weight, ctx.mask = inputs
    ctx.save_for_backward(dy, x, weight)


def _derive_backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    def gradients(dy: Tensor, x: Tensor, weight: Tensor) -> list[Tensor | None]:
        truth = reference.weight_norm(x, weight, dy)
        return [truth[k] if m else None for k, m in zip(("dx", "dw"), ctx.mask, strict=True)]

    ddy, dx, dw = gradient_of(gradients, ctx.saved_tensors, upstream)
    return ddy, dx, None, dw, None


differentiate(_weight_norm, _derive, _save)
differentiate(_weight_norm_backward, _derive_backward, _save_backward)


# -------------------------------------------------------------------------------------------------- for models


def weight_norm(v: Tensor, g: Tensor, dim: int | None = 0) -> Tensor:
    """g v / ||v||: v's direction with the length g, the norm taken over all dimensions but `dim`.

    v: any shape of one dimension at least, in float32, float16, bfloat16 or float64; g: v's shape with ones in place of
    all sizes but `dim`'s, in v's dtype, or float32 beside a 16-bit v. With dim=None, which PyTorch also writes -1, the
    norm is that of all of v and g has the shape (). Returns v's shape and dtype, contiguous. Another shape of g and a
    dim that v has not raise ValueError; where v is zero throughout, its direction and so the result are NaN.

    In the kernels neither a square nor the norm can overflow or vanish: rows of size 1e30 or 1e-30 come out as exact as
    those of size 1. A norm of all of v is left to PyTorch's operators: a row is for one program to sweep.

    Salimans and Kingma, "Weight normalization" (2016), equations 2 and 3.
    """
    _check(v, g, dim)
    if dim is None or dim == -1 or not serves(v, g):
        return composed.weight_norm(v, g, dim)
    y, _ = _weight_norm(v.movedim(dim, 0), g.movedim(dim, 0))
    return cast(Tensor, y.movedim(0, dim).contiguous())


def _check(v: Tensor, g: Tensor, dim: int | None) -> None:
    whole = dim is None or dim == -1
    if not whole and not 0 <= cast(int, dim) < v.dim():
        raise ValueError(f"dim must be None or from 0 to {v.dim() - 1} for a v of {v.dim()} dimensions, not {dim!r}")
    wanted = () if whole else tuple(size if d == dim else 1 for d, size in enumerate(v.shape))
    if tuple(g.shape) != wanted:
        raise ValueError(
            f"g must have the shape {wanted} for a v of {tuple(v.shape)} and dim={dim}, not {tuple(g.shape)}"
        )


class WeightNorm(torch.nn.Module):
    """The parametrization g, v -> g v / ||v||, for `torch.nn.utils.parametrize.register_parametrization`.

    dim: as in `functional.weight_norm`. A parameter that it is registered on is kept as `original0`, g, and
    `original1`, v; to assign to it sets v to the value and g to its norm.
    """

    def __init__(self, dim: int | None = 0) -> None:
        super().__init__()
        self.dim = dim

    def extra_repr(self) -> str:
        return f"dim={self.dim}"

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """The weight: v's shape and dtype."""
        return weight_norm(v, g, self.dim)

    def right_inverse(self, weight: Tensor) -> Pair:
        """(g, v) that give the weight: its norm and itself."""
        return torch.norm_except_dim(weight, 2, -1 if self.dim is None else self.dim), weight


def parametrize_weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """`torch.nn.utils.parametrizations.weight_norm` on the Triton kernels: same arguments, parameters and state_dict.

    Returns the module, whose parameter `name` is from then on computed from g (`parametrizations.<name>.original0`) and
    v (`original1`). `torch.nn.utils.parametrize.remove_parametrizations` takes it away again.
    """
    # PyTorch's own, so that a checkpoint of its older weight_norm loads too; then the formula is exchanged.
    parametrizations.weight_norm(module, name, dim)  # type: ignore[arg-type]
    registered = cast(torch.nn.ModuleDict, module.parametrizations)
    cast(torch.nn.ModuleList, registered[name])[-1] = WeightNorm(dim)
    return module
