"""Layer normalization: y = (x - mean) / sqrt(var + eps) * weight + bias over the last dimensions (Ba et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normlib import reference
from normlib.row_norm import fits, register_row_norm

_layer_norm = register_row_norm("layer_norm", centred=True, reference=reference.layer_norm)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalizes each row of the last `len(normalized_shape)` dimensions: `torch.nn.functional.layer_norm`.

    input: (*, *normalized_shape) in float32, float16, bfloat16 or float64; weight and bias: normalized_shape, in
    input's dtype, or float32 beside a 16-bit input. Returns input's shape and dtype, contiguous. Bad shapes and dtypes
    raise what PyTorch raises. The result's bits for a row do not depend on the other rows.

    Ba, Kiros and Hinton, "Layer normalization" (2016), equations 3 and 4.
    """
    if not fits(input, normalized_shape, weight, bias, eps):
        return torch.nn.functional.layer_norm(input, normalized_shape, weight, bias, eps)
    y: Tensor = _layer_norm(input, normalized_shape, weight, bias, eps)[0]
    return y


class LayerNorm(torch.nn.LayerNorm):
    """`torch.nn.LayerNorm` on the Triton kernels: same arguments, parameters and state_dict."""

    def forward(self, input: Tensor) -> Tensor:
        """input: (*, *normalized_shape); returns the same shape and dtype."""
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
