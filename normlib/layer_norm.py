"""Layer normalization: y = (x - mean) / sqrt(var + eps) * weight + bias over the last dimensions (Ba et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast, overload

import torch
from torch import Tensor

from normlib import reference
from normlib.row_norm import adds, fits, register_row_norm

_layer_norm, _layer_norm_add = register_row_norm("layer_norm", centred=True, reference=reference.layer_norm)


@overload
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: None = None,
) -> Tensor: ...


@overload
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor,
) -> tuple[Tensor, Tensor]: ...


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalizes each row of the last `len(normalized_shape)` dimensions: `torch.nn.functional.layer_norm`.

    input: (*, *normalized_shape) in float32, float16, bfloat16 or float64; weight and bias: normalized_shape, in
    input's dtype, or float32 beside a 16-bit input. Returns input's shape and dtype, contiguous. Bad shapes and dtypes
    raise what PyTorch raises. The result's bits for a row do not depend on the other rows.

    With a residual of input's shape, dtype and device (else ValueError) it returns the pair (y, z): z = input +
    residual, rounded to that dtype, and y = layer_norm(z). They have the same bits as with two calls, in one kernel
    that reads and writes each tensor once; backward adds the gradient of z in the kernel of the norm.

    Ba, Kiros and Hinton, "Layer normalization" (2016), equations 3 and 4.
    """
    if residual is not None:
        if adds(input, residual) and fits(input, normalized_shape, weight, bias, eps):
            y, z, *_ = _layer_norm_add(input, residual, normalized_shape, weight, bias, eps)
            return y, z
        z = input + residual
        return layer_norm(z, normalized_shape, weight, bias, eps), z
    if not fits(input, normalized_shape, weight, bias, eps):
        return torch.nn.functional.layer_norm(input, normalized_shape, weight, bias, eps)
    return cast(Tensor, _layer_norm(input, normalized_shape, weight, bias, eps)[0])


class LayerNorm(torch.nn.LayerNorm):
    """`torch.nn.LayerNorm` on the Triton kernels: same arguments, parameters and state_dict.

    normalized_shape: the sizes of the last dimensions, which are normalized together; eps: added to the variance;
    elementwise_affine: with a weight, and with a bias unless `bias` is False; device and dtype: of these parameters.

    Called with x (*, *normalized_shape) it returns the same shape and dtype; called with a residual like x it returns
    the norm of x + residual, and that sum. Shapes, dtypes, errors and the formula: `normlib.functional.layer_norm`.

        norm = normlib.LayerNorm(4096, device="cuda", dtype=torch.bfloat16)
        y = norm(x)
        y, stream = norm(x, residual=stream)
    """

    @overload
    def forward(self, input: Tensor, residual: None = None) -> Tensor: ...

    @overload
    def forward(self, input: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """input: (*, *normalized_shape); returns the same shape and dtype.

        With a residual like input: the norm of input + residual, and that sum, as `functional.layer_norm` does.
        """
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps, residual=residual)

    if TYPE_CHECKING:

        @overload
        def __call__(self, input: Tensor, residual: None = None) -> Tensor: ...

        @overload
        def __call__(self, input: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...

        def __call__(self, input: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]: ...
