"""The operators that PyTorch has none of, put together from its own: what a model runs without these kernels.

Same names and signatures as in functional.py. Without a GPU they serve the layers; in bench/ they are what PyTorch and
torch.compile run.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

import torch
from torch import Tensor


def partial_rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    bias: Tensor | None = None,
    partial: float = 0.0625,
) -> Tensor:
    """RMS norm by the mean square of the first ceil(partial N) of a row's N elements."""
    shape = tuple(normalized_shape)
    _check_rows(input, shape, weight, bias)
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    part = x.flatten(-len(shape))[..., : ceil(partial * prod(shape))]
    mean_square = part.square().mean(-1)[(..., *(None,) * len(shape))]
    y = x * torch.rsqrt(mean_square + (torch.finfo(x.dtype).eps if eps is None else eps))
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y.to(input.dtype)


def _check_rows(input: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None) -> None:
    """Raises what torch.nn.functional.rms_norm does unless these are rows of this shape and their parameters."""
    if not input.is_floating_point():
        raise NotImplementedError(f"a norm of rows takes floating point, not {input.dtype}")
    if not shape:
        raise RuntimeError("Expected normalized_shape to be at least 1-dimensional, but got normalized_shape = []")
    if tuple(input.shape[-len(shape) :]) != shape:
        wanted = ", ".join(map(str, ("*", *shape)))
        raise RuntimeError(
            f"Given normalized_shape={list(shape)}, expected input with shape [{wanted}], but got input of size "
            f"{list(input.shape)}"
        )
    for name, parameter in {"weight": weight, "bias": bias}.items():
        if parameter is not None and tuple(parameter.shape) != shape:
            raise RuntimeError(
                f"Expected {name} to be of same shape as normalized_shape, but got {name} of shape "
                f"{list(parameter.shape)} and normalized_shape = {list(shape)}"
            )
