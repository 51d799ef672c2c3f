"""Root mean square normalization: y = x / sqrt(mean(x^2) + eps) * weight + bias (Zhang and Sennrich 2019).

Also by the mean square of a part of each row (their section 4: pRMSNorm).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast, overload

import torch
from torch import Tensor

from normlib import composed, reference
from normlib.kernels.host import statistics_dtype
from normlib.row_norm import adds, fits, register_row_norm

PARTIAL = 0.0625  # the authors' choice

_rms_norm, _rms_norm_add = register_row_norm("rms_norm", centred=False, reference=reference.rms_norm)


@overload
def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    bias: Tensor | None = None,
    *,
    residual: None = None,
    zero_centred: bool = False,
) -> Tensor: ...


@overload
def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor,
    zero_centred: bool = False,
) -> tuple[Tensor, Tensor]: ...


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    zero_centred: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scales each row of the last dimensions to unit root mean square: `torch.nn.functional.rms_norm`, and a bias.

    input: (*, *normalized_shape) in float32, float16, bfloat16 or float64; weight and bias: normalized_shape, in
    input's dtype, or float32 beside a 16-bit input; eps: None means float32's epsilon (float64's for float64). Returns
    input's shape and dtype, contiguous. Bad shapes and dtypes raise what PyTorch raises.

    With a residual of input's shape, dtype and device (else ValueError) it returns the pair (y, z): z = input +
    residual, rounded to that dtype, and y = rms_norm(z). They have the same bits as with two calls, in one kernel that
    reads and writes each tensor once; backward adds the gradient of z in the kernel of the norm.

    zero_centred: the scale is 1 + weight, a sum that is not rounded to 16 bits, as in Gemma's RMSNorm and Transformer
    Engine's zero_centered_gamma.

    Zhang and Sennrich, "Root mean square layer normalization" (2019), equation 4.
    """
    served = fits(input, normalized_shape, weight, bias, 0.0 if eps is None else eps)
    if residual is not None and not (adds(input, residual) and served):
        z = input + residual
        return rms_norm(z, normalized_shape, weight, eps, bias, zero_centred=zero_centred), z
    if not served:
        if bias is None and not zero_centred:
            return torch.nn.functional.rms_norm(input, normalized_shape, weight, eps)
        return _by_pytorch(input, normalized_shape, weight, eps, bias, zero_centred)
    if eps is None:
        eps = torch.finfo(statistics_dtype(input)).eps
    if residual is not None:
        y, z, *_ = _rms_norm_add(input, residual, normalized_shape, weight, bias, eps, zero_centred)
        return y, z
    return cast(Tensor, _rms_norm(input, normalized_shape, weight, bias, eps, zero_centred)[0])


def _by_pytorch(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    bias: Tensor | None,
    zero_centred: bool,
) -> Tensor:
    if zero_centred and weight is not None:
        # PyTorch refuses dtypes that are not floating point.
        wide = torch.promote_types(input.dtype, torch.float32) if input.is_floating_point() else input.dtype
        weight = 1 + weight.to(wide)
        y = torch.nn.functional.rms_norm(input.to(wide), normalized_shape, weight, eps).to(input.dtype)
    else:
        y = torch.nn.functional.rms_norm(input, normalized_shape, weight, eps)
    return y if bias is None else y + bias


class RMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm` on the Triton kernels: same arguments, parameters and state_dict.

    normalized_shape: the sizes of the last dimensions, which are normalized together; eps: added to the mean square,
    None for float32's epsilon; elementwise_affine: with a weight; device and dtype: of the parameters. With `bias=True`
    it also has a bias, initialized to zero, which PyTorch's layer does not have. With `zero_centred=True` the scale is
    1 + weight, and the weight is initialized to zero, as in Gemma.

    Called with x (*, *normalized_shape) it returns the same shape and dtype; called with a residual like x it returns
    the norm of x + residual, and that sum. Shapes, dtypes, errors and the formula: `normlib.functional.rms_norm`.
    """

    # A class attribute too: torch.nn.RMSNorm initializes the weight before it is set, and normlib.convert exchanges the
    # class of modules that have no such attribute.
    zero_centred = False
    bias: torch.nn.Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = False,
        zero_centred: bool = False,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.zero_centred = zero_centred
        shape = self.normalized_shape
        empty = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", empty)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the weight to ones, or to zeros if it is `zero_centred`, so that the scale is one, and the bias to 0."""
        super().reset_parameters()
        if self.zero_centred and self.elementwise_affine:
            torch.nn.init.zeros_(self.weight)
        bias = self._parameters.get("bias")  # which is not there yet while torch.nn.RMSNorm initializes the weight
        if bias is not None:
            torch.nn.init.zeros_(bias)

    def extra_repr(self) -> str:
        options = ("" if self.bias is None else ", bias=True") + (", zero_centred=True" if self.zero_centred else "")
        return super().extra_repr() + options

    @overload
    def forward(self, x: Tensor, residual: None = None) -> Tensor: ...

    @overload
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """x: (*, *normalized_shape); returns the same shape and dtype.

        With a residual like x: the norm of x + residual, and that sum, as `functional.rms_norm` does.
        """
        shape, around = self.normalized_shape, self.zero_centred
        return rms_norm(x, shape, self.weight, self.eps, self.bias, residual=residual, zero_centred=around)

    if TYPE_CHECKING:

        @overload
        def __call__(self, x: Tensor, residual: None = None) -> Tensor: ...

        @overload
        def __call__(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...

        def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]: ...


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
    _check_partial(partial)
    if not fits(input, normalized_shape, weight, bias, 0.0 if eps is None else eps):
        return composed.partial_rms_norm(input, normalized_shape, weight, eps, bias, partial)
    if eps is None:
        eps = torch.finfo(statistics_dtype(input)).eps
    return cast(Tensor, _rms_norm(input, normalized_shape, weight, bias, eps, False, partial)[0])


def _check_partial(partial: float) -> None:
    if not 0 < partial <= 1:
        raise ValueError(f"partial must be above 0 and at most 1, but got {partial}")


class PartialRMSNorm(RMSNorm):
    """`RMSNorm` by the root mean square of the first ceil(partial N) of a row's N elements.

    Same parameters and state_dict; takes neither a residual nor `zero_centred`.
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
        _check_partial(partial)
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype, bias=bias)
        self.partial = partial

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, partial={self.partial}"

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """x: (*, *normalized_shape); returns the same shape and dtype."""
        return partial_rms_norm(x, self.normalized_shape, self.weight, self.eps, self.bias, self.partial)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...  # type: ignore[override]
