"""Root mean square normalization: y = x / sqrt(mean(x^2) + eps) * weight + bias (Zhang and Sennrich 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normlib import reference
from normlib.registration import statistics_dtype
from normlib.row_norm import fits, register_row_norm

_rms_norm = register_row_norm("rms_norm", centred=False, reference=reference.rms_norm)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Scales each row of the last dimensions to unit root mean square: `torch.nn.functional.rms_norm`, and a bias.

    input: (*, *normalized_shape) in float32, float16, bfloat16 or float64; weight and bias: normalized_shape, in
    input's dtype, or float32 beside a 16-bit input; eps: None means float32's epsilon (float64's for float64). Returns
    input's shape and dtype, contiguous. Bad shapes and dtypes raise what PyTorch raises.

    Zhang and Sennrich, "Root mean square layer normalization" (2019), equation 4.
    """
    if not fits(input, normalized_shape, weight, bias, 0.0 if eps is None else eps):
        y = torch.nn.functional.rms_norm(input, normalized_shape, weight, eps)
        return y if bias is None else y + bias
    if eps is None:
        eps = torch.finfo(statistics_dtype(input)).eps
    result: Tensor = _rms_norm(input, normalized_shape, weight, bias, eps)[0]
    return result


class RMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm` on the Triton kernels: same arguments, parameters and state_dict.

    With `bias=True` it also has a `bias` parameter, zero at first, which torch's has not.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        if bias:
            self.bias = torch.nn.Parameter(torch.zeros(self.normalized_shape, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.bias is None else ", bias=True")

    def forward(self, x: Tensor) -> Tensor:
        """x: (*, *normalized_shape); returns the same shape and dtype."""
        return rms_norm(x, self.normalized_shape, self.weight, self.eps, self.bias)
