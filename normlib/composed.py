"""The operators that PyTorch has none of, put together from its own: what a model runs without these kernels.

Same names and signatures as in functional.py. Without a GPU they serve the layers; in bench/ they are what PyTorch and
torch.compile run.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from normlib.backend import transforming
from normlib.lp_norm_composed import lp_norm as lp_norm
from normlib.philox import noise_of
from normlib.sequences import Lengths, Steps, over_steps


def _wide(x: Tensor) -> torch.dtype:
    """What x is computed in: its own dtype, or float32 for 16 bits."""
    return torch.promote_types(x.dtype, torch.float32)


def batch_renorm(
    input: Tensor,
    running_mean: Tensor,
    running_std: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.01,
    eps: float = 1e-3,
    rmax: float | Tensor = 3.0,
    dmax: float | Tensor = 5.0,
) -> Tensor:
    """`functional.batch_renorm`: batch norm with another weight and bias, after the batch's statistics."""
    wide = _wide(input)
    running = [t.to(wide) for t in (running_mean, running_std)]
    w, b = (None if t is None else t.to(wide) for t in (weight, bias))
    if not training:
        # PyTorch 2.11's F.batch_norm refuses an eps of 0, and its operator takes it.
        return torch.batch_norm(input, w, b, running[0], running[1].square(), False, 0.0, 0.0, False)
    if input.numel() == 0:
        return F.batch_norm(input, None, None, w, b, True, momentum, eps)
    dims = [d for d in range(input.dim()) if d != 1]
    variance, mean = torch.var_mean(input.detach().to(wide), dims, correction=0)
    std = (variance + eps).sqrt()
    most_r, most_d = cast(Any, rmax), cast(Any, dmax)  # either may be a tensor
    r = (std / running[1]).clamp(min=1 / most_r).clamp(max=most_r)
    d = ((mean - running[0]) / running[1]).clamp(min=-most_d).clamp(max=most_d)
    scale, shift = (r, d) if w is None else (w * r, w * d)
    y = F.batch_norm(input, None, None, scale, shift if b is None else shift + b, True, momentum, eps)
    with torch.no_grad():
        for buffer, old, new in zip((running_mean, running_std), running, (mean, std), strict=True):
            buffer.copy_(torch.lerp(old, new, momentum))
    return y


def noisy_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    seed: int | Tensor | None = None,
    per: str = "layer",
    mean_limit: float = 0.5,
    std_limit: float = 1.25,
    mean_spread: float = 0.1,
    std_spread: float = 0.1,
) -> Tensor:
    """`functional.noisy_batch_norm`: batch norm, and the noise that the kernels draw, as tensors."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    wide = _wide(input)
    given = [None if t is None else t.to(wide) for t in (running_mean, running_var, weight, bias)]
    y = F.batch_norm(input.to(wide), given[0], given[1], given[2], given[3], True, momentum, eps)
    for buffer, moved in zip((running_mean, running_var), given, strict=False):
        if buffer is not None and moved is not None and moved is not buffer:
            buffer.copy_(moved)
    ranges = [mean_limit, std_limit, mean_spread, std_spread]
    s, m = noise_of(input, seed_on(input.device, seed), per == "unit", ranges, wide)
    return (y * s + m).to(input.dtype)


def seed_on(device: torch.device, seed: int | Tensor | None) -> Tensor:
    """A seed as one int64 on the device: the given one, or one of the device's default generator."""
    if seed is None:
        return torch.randint(2**63 - 1, (), device=device)
    if isinstance(seed, Tensor):
        return seed.to(device, torch.int64).reshape(())
    return torch.full((), seed, dtype=torch.int64, device=device)


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
    fused = one in (0, v.dim() - 1)  # else it is what follows here, in v's dtype
    if v.is_cuda and fused and v.dtype == g.dtype and not transforming():
        return torch._weight_norm(v, g, one)
    wide = torch.promote_types(v.dtype, torch.float32)
    others = tuple(d for d in range(v.dim()) if d != one)
    # Without another dimension each element is a row, and an empty list would mean all of them.
    x = v.to(wide)
    norm = torch.linalg.vector_norm(x, dim=others, keepdim=one != -1) if others else x.abs()
    return (x * (g / norm)).to(v.dtype)
