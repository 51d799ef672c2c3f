"""Instance normalization: each channel of each image by itself (Ulyanov, Vedaldi and Lempitsky 2016)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normlib.backend import serves
from normlib.batch_norm import batch_norm
from normlib.channels import contiguous
from normlib.group_norm import Triple, fake_forward, gradients
from normlib.kernels.group_norm import instance as kernels
from normlib.registration import differentiate, register


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Triple:
    return kernels.instance_norm_forward(
        x, contiguous(weight), contiguous(bias), running_mean, running_var, momentum, eps
    )


def _fake(x: Tensor, *_: Any) -> Triple:
    return fake_forward(x, x.shape[1])


_instance_norm = register(
    "instance_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? running_var,"
    " float momentum, float eps) -> (Tensor y, Tensor mean, Tensor rstd)",
    _forward,
    _fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    x, weight, bias, _, _, _, ctx.eps = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _derive(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
    channels = ctx.saved_tensors[0].shape[1]
    return *gradients(ctx, dy, channels, (of_x, of_weight, of_bias)), *[None] * 4


differentiate(_instance_norm, _derive, _save)


def _fits(x: Tensor, channel_vectors: tuple[Tensor | None, ...], momentum: float, eps: float) -> bool:
    """Whether the kernels can take these arguments; if not, PyTorch computes it, or says what is wrong."""
    if not (serves(x, *channel_vectors) and isinstance(momentum, (float, int)) and isinstance(eps, (float, int))):
        return False
    running_mean, running_var = channel_vectors[2:]
    return (
        x.dim() >= 3
        and x.numel() > x.shape[0] * x.shape[1]
        and eps > 0.0
        and all(v is None or (v.dim() == 1 and v.shape[0] == x.shape[1]) for v in channel_vectors)
        and (running_mean is None) == (running_var is None)
        and all(v is None or v.is_contiguous() for v in (running_mean, running_var))
    )


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalizes each channel of each image over all positions: `torch.nn.functional.instance_norm`.

    input: (N, C, *) in float32, float16, bfloat16 or float64, contiguous or channels-last (kept in the result); weight,
    bias, running_mean, running_var: (C,) in input's dtype, or float32 beside a 16-bit input. Running buffers, if given,
    move by `momentum` towards the mean over images of each channel's mean and unbiased variance. Without
    `use_input_stats` they are used in place of the input's own: evaluation of batch norm. Returns input's shape and
    dtype. Bad shapes, dtypes and eps raise what PyTorch raises, before any buffer changes.

    Ulyanov, Vedaldi and Lempitsky, "Instance normalization: the missing ingredient for fast stylization" (2016),
    equation 3.
    """
    buffers = (running_mean, running_var)
    if not _fits(input, (weight, bias, *buffers), momentum, eps) or (not use_input_stats and running_mean is None):
        return torch.nn.functional.instance_norm(input, *buffers, weight, bias, use_input_stats, momentum, eps)
    if not use_input_stats:
        return batch_norm(input, *buffers, weight, bias, False, momentum, eps)
    result: Tensor = _instance_norm(input, weight, bias, *buffers, momentum, eps)[0]
    return result


class _InstanceNorm(torch.nn.modules.instancenorm._InstanceNorm):
    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        momentum = 0.0 if self.momentum is None else self.momentum
        own = self.training or not self.track_running_stats
        return instance_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, own, momentum, self.eps
        )


class InstanceNorm1d(_InstanceNorm, torch.nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d` on the Triton kernels: same arguments, parameters, buffers and state_dict."""


class InstanceNorm2d(_InstanceNorm, torch.nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` on the Triton kernels: same arguments, parameters, buffers and state_dict."""


class InstanceNorm3d(_InstanceNorm, torch.nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` on the Triton kernels: same arguments, parameters, buffers and state_dict."""
