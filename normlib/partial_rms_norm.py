"""RMS norm by the mean square of a part of each row (Zhang and Sennrich 2019, section 4: pRMSNorm)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normlib import composed
from normlib.kernels.numerics import statistics_dtype
from normlib.rms_norm import RMSNorm, _rms_norm
from normlib.row_norm import fits

PARTIAL = 0.0625  # the authors' choice


def partial_rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    bias: Tensor | None = None,
    partial: float = PARTIAL,
) -> Tensor:
    """`rms_norm` with the root mean square of a row's first ceil(partial N) elements in place of all N.

    input: (*, *normalized_shape) in float32, float16, bfloat16 or float64; weight and bias: normalized_shape, in
    input's dtype, or float32 beside a 16-bit input; eps: None means float32's epsilon (float64's for float64); partial:
    above 0 and at most 1, where it is rms_norm to the bit. Returns input's shape and dtype, contiguous. ValueError for
    another `partial`; bad shapes raise what `rms_norm` raises.

    Zhang and Sennrich, "Root mean square layer normalization" (2019), section 4, with eps inside the root.
    """
    check_partial(partial)
    if not fits(input, normalized_shape, weight, bias, 0.0 if eps is None else eps):
        return composed.partial_rms_norm(input, normalized_shape, weight, eps, bias, partial)
    if eps is None:
        eps = torch.finfo(statistics_dtype(input)).eps
    result: Tensor = _rms_norm(input, normalized_shape, weight, bias, eps, False, partial)[0]
    return result


def check_partial(partial: float) -> None:
    """ValueError unless it is a part of a row."""
    if not 0 < partial <= 1:
        raise ValueError(f"partial must be above 0 and at most 1, but got {partial}")


class PartialRMSNorm(RMSNorm):
    """`RMSNorm` by the root mean square of the first ceil(partial N) of a row's N elements.

    Same parameters and state_dict; neither a residual nor a weight around zero.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        bias: bool = False,
        partial: float = PARTIAL,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_partial(partial)
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype, bias=bias)
        self.partial = partial

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, partial={self.partial}"

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """x: (*, *normalized_shape); returns the same shape and dtype."""
        return partial_rms_norm(x, self.normalized_shape, self.weight, self.eps, self.bias, self.partial)
