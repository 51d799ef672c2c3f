"""The operators that PyTorch has none of, put together from its own: what a model runs without these kernels.

Same names and signatures as in functional.py. Without a GPU they serve the layers; in bench/ they are what PyTorch and
torch.compile run.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from normlib.backend import transforming
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
        return F.batch_norm(input, running[0], running[1].square(), w, b, False, 0.0, 0.0)
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
