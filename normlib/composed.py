"""The operators that PyTorch has none of, put together from its own: what a model runs without these kernels.

Same names and signatures as in functional.py. Without a GPU they serve the layers; in bench/ they are what PyTorch and
torch.compile run.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

import torch
from torch import Tensor

from normlib.backend import transforming
from normlib.lp_norm_composed import lp_norm as lp_norm
from normlib.sequences import Lengths, Steps, over_steps


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


def sequence_batch_norm(
    input: Steps,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    lengths: Lengths | None = None,
    batch_first: bool = False,
) -> Steps:
    """Batch norm of all steps of all sequences."""

    def norm(steps: Tensor) -> Tensor:
        return torch.nn.functional.batch_norm(steps, running_mean, running_var, weight, bias, training, momentum, eps)

    return over_steps(norm, input, lengths, batch_first)


def weight_norm(v: Tensor, g: Tensor, dim: int | None = 0) -> Tensor:
    """g v / ||v||, 16 bits in float32; on a GPU by PyTorch's fused kernels, which have neither jvp nor two dtypes."""
    one = -1 if dim is None else dim  # -1 is none of them: the norm is that of all of v
    if v.is_cuda and v.dtype == g.dtype and not transforming():
        return torch._weight_norm(v, g, one)
    wide = torch.promote_types(v.dtype, torch.float32)
    others = tuple(d for d in range(v.dim()) if d != one)
    # Without another dimension each element is a row, and an empty list would mean all of them.
    x = v.to(wide)
    norm = torch.linalg.vector_norm(x, dim=others, keepdim=one != -1) if others else x.abs()
    return (x * (g / norm)).to(v.dtype)
