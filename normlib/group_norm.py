"""Group normalization: each image's channels in groups, normalized one by one (Wu and He 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from normlib import reference
from normlib.dispatch import (
    CustomOperator,
    LazyModule,
    Triple,
    autocast_as_pytorch,
    backward_operator,
    by_mask,
    contiguous,
    derive_again,
    derive_by,
    dtypes_by_mask,
    like_input,
    serves,
)
from normlib.kernels.host import statistics_dtype

kernels = LazyModule("normlib.kernels.group_norm.launch")


def _forward(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Triple:
    return kernels.group_norm_forward(x, groups, contiguous(weight), contiguous(bias), eps)


def fake_forward(x: Tensor, groups: int, *_: Any) -> Triple:
    """Returns empty (y, mean (2, N * groups), rstd (N * groups,))."""
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
    dtypes = dtypes_by_mask(weight, bias, output_mask)
    saved = (mean.contiguous(), rstd.contiguous(), contiguous(weight))
    found = kernels.group_norm_backward(dy, x, groups, *saved, *dtypes, need_dx=output_mask[0])
    return cast(Triple, by_mask(found, (x, weight, bias), output_mask))


def _formula(dy: Tensor, x: Tensor, groups: int, weight: Tensor | None, eps: float) -> dict[str, Tensor]:
    return reference.group_norm(x, groups, weight, None, eps, dy)


_group_norm = CustomOperator("group_norm", _forward, fake_forward)
group_norm_backward = backward_operator("group_norm_backward", _backward)
derive_by(_group_norm, group_norm_backward)
derive_again(group_norm_backward, _formula)
autocast_as_pytorch(_group_norm)


def _fits(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> bool:
    """Returns True if the kernels can take these arguments."""
    return (
        serves(x, weight, bias)
        and isinstance(groups, int)
        and isinstance(eps, (float, int))
        and x.dim() >= 2
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
    return cast(Tensor, _group_norm(input, num_groups, weight, bias, eps)[0])


class GroupNorm(torch.nn.GroupNorm):
    """`torch.nn.GroupNorm` on the Triton kernels: same arguments, parameters and state_dict.

    num_groups: of the num_channels channels, a multiple of it; eps: added to the variance; affine: with a weight and a
    bias of one number a channel. Takes (N, C, *) and returns the same shape, dtype and layout; dtypes, errors and the
    formula: `normlib.functional.group_norm`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """input: (N, C, *); returns the same shape, dtype and layout."""
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor: ...
