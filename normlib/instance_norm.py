"""Instance normalization: each channel of each image by itself (Ulyanov, Vedaldi and Lempitsky 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from normlib.batch_norm import batch_norm
from normlib.dispatch import CustomOperator, LazyModule, Triple, contiguous, derive_by, serves
from normlib.group_norm import fake_forward, group_norm_backward

kernels = LazyModule("normlib.kernels.group_norm.instance")


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Triple:
    vectors = (contiguous(weight), contiguous(bias), running_mean, running_var)
    return kernels.instance_norm_forward(x, *vectors, momentum, eps)


def _fake(x: Tensor, *_: Any) -> Triple:
    return fake_forward(x, x.shape[1])


_instance_norm = CustomOperator("instance_norm", _forward, _fake, mutates=("running_mean", "running_var"))
derive_by(_instance_norm, group_norm_backward, groups=lambda x: x.shape[1])


def _fits(x: Tensor, channel_vectors: tuple[Tensor | None, ...], momentum: float, eps: float) -> bool:
    """Returns True if the kernels can take these arguments."""
    running_mean, running_var = channel_vectors[2:]
    return (
        serves(x, *channel_vectors)
        and isinstance(momentum, (float, int))
        and isinstance(eps, (float, int))
        and x.dim() >= 3
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
    return cast(Tensor, _instance_norm(input, weight, bias, *buffers, momentum, eps)[0])


class _InstanceNorm(torch.nn.modules.instancenorm._InstanceNorm):
    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        momentum = 0.0 if self.momentum is None else self.momentum
        own = self.training or not self.track_running_stats
        return instance_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, own, momentum, self.eps
        )

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor: ...


class InstanceNorm1d(_InstanceNorm, torch.nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d` on the Triton kernels: same arguments, parameters, buffers and state_dict.

    Takes (N, C, L) or (C, L) and returns the same shape, dtype and layout. num_features: C. Dtypes,
    errors and the formula: `normlib.functional.instance_norm`.
    """


class InstanceNorm2d(_InstanceNorm, torch.nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` on the Triton kernels: same arguments, parameters, buffers and state_dict.

    Takes (N, C, H, W) or (C, H, W) and returns the same shape, dtype and layout. num_features: C. Dtypes,
    errors and the formula: `normlib.functional.instance_norm`.
    """


class InstanceNorm3d(_InstanceNorm, torch.nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` on the Triton kernels: same arguments, parameters, buffers and state_dict.

    Takes (N, C, D, H, W) or (C, D, H, W) and returns the same shape, dtype and layout. num_features: C. Dtypes,
    errors and the formula: `normlib.functional.instance_norm`.
    """
