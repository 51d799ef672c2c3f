"""Compositions of PyTorch's operators for the norms that PyTorch does not have.

Same names and signatures as in functional.py. Layers use them where the kernels do not serve, such as without a GPU;
in bench/ they are what PyTorch and torch.compile run.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf, prod, sqrt
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from normlib.dispatch import refuse_gradient, transforming
from normlib.philox import noise_of
from normlib.sequence_batch_norm import Lengths, Steps, over_steps


def _wide(x: Tensor) -> torch.dtype:
    """Returns the dtype to compute x in: its own, or float32 for 16 bits."""
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
    """Batch renormalization, as batch norm whose weight and bias follow from the batch's statistics."""
    for name, buffer in (("running_mean", running_mean), ("running_std", running_std)):
        refuse_gradient("batch_renorm", name, buffer)
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
    """Noisy batch norm, with the noise that the kernels draw as tensors."""
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
    """Returns a seed as one int64 on the device: the given one, or one from the device's default generator."""
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
    """RMS norm by the mean square of the first ceil(partial N) of the N elements of a row."""
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
    """Returns g v / ||v||, 16 bits in float32; on a GPU by PyTorch's fused kernels, which take one dtype and no jvp."""
    one = -1 if dim is None else dim  # -1: the norm of all of v
    fused = one in (0, v.dim() - 1)  # for other dimensions PyTorch composes it too, in v's dtype
    if v.is_cuda and fused and v.dtype == g.dtype and not transforming():
        return torch._weight_norm(v, g, one)
    wide = torch.promote_types(v.dtype, torch.float32)
    others = tuple(d for d in range(v.dim()) if d != one)
    # Without another dimension each element is a row, and an empty list would mean all of them.
    x = v.to(wide)
    norm = torch.linalg.vector_norm(x, dim=others, keepdim=one != -1) if others else x.abs()
    return (x * (g / norm)).to(v.dtype)


def lp_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_norm: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    p: float = 2.0,
) -> Tensor:
    """Centres each channel and divides it by its average l_p norm."""
    _check_lp_norm(input, (running_mean, running_norm), (weight, bias), training, eps, p)
    wide = _wide(input)
    x, dims = input.to(wide), [d for d in range(input.dim()) if d != 1]
    if training and x.numel():
        mean = x.mean(dims)
        if p == 1:
            norm = x.abs().mean(dims)
            sigma = norm + sqrt(eps)
        elif p == 2:
            square = x.square().mean(dims)
            norm, sigma = square.detach().sqrt(), (square + eps).sqrt()
        else:
            norm = x.abs().amax(dims)
            sigma = norm.clamp(min=sqrt(eps))
        if running_mean is not None and running_norm is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_norm.lerp_(norm.to(running_norm.dtype), momentum)
    elif training:
        mean, sigma = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    else:
        assert running_mean is not None and running_norm is not None
        mean, norm = running_mean.to(wide), running_norm.to(wide)
        sigma = norm + sqrt(eps) if p == 1 else (norm * norm + eps).sqrt() if p == 2 else norm.clamp(min=sqrt(eps))
    channel = [-1] + [1] * (x.dim() - 2)
    scale = 1 / sigma if weight is None else weight.to(wide) / sigma
    y = (x - mean.view(channel)) * scale.view(channel)
    y = y if bias is None else y + bias.to(wide).view(channel)
    return y.to(input.dtype)


def _check_lp_norm(
    input: Tensor,
    buffers: tuple[Tensor | None, ...],
    parameters: tuple[Tensor | None, ...],
    training: bool,
    eps: float,
    p: float,
) -> None:
    if p not in (1, 2, inf):
        raise ValueError(f"p must be 1, 2 or inf, not {p!r}")
    if input.dim() < 2:
        raise ValueError(f"input must be (N, C, *), not of shape {tuple(input.shape)}")
    if not input.is_floating_point():
        raise NotImplementedError(f"lp_norm is not implemented for {input.dtype}")
    if (buffers[0] is None) != (buffers[1] is None):
        raise ValueError("running_mean and running_norm must either both be None or neither be None")
    if not training and buffers[0] is None:
        raise ValueError("running_mean and running_norm must be defined in evaluation mode")
    if not (eps > 0 if training else eps >= 0):
        raise ValueError(f"eps must be {'positive in training' if training else 'zero or more'}, not {eps!r}")
    if training and input.numel() == input.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.shape}")
    names = ("running_mean", "running_norm", "weight", "bias")
    for name, buffer in zip(names[:2], buffers, strict=True):
        refuse_gradient("lp_norm", name, buffer)
    for name, vector in zip(names, (*buffers, *parameters), strict=True):
        if vector is not None and vector.shape != (input.shape[1],):
            raise ValueError(f"{name} must have shape {(input.shape[1],)}, not {tuple(vector.shape)}")
