"""Instance norm of (N, C, *): group norm with a channel a group, and running statistics beside it.

    running_mean <- (1 - momentum) running_mean + momentum (mean over images of mean)
    running_var  <- (1 - momentum) running_var  + momentum (mean over images of var S / (S - 1))

S is the number of positions. One launch more, of a few values a channel.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from normlib.kernels import plan as plans
from normlib.kernels.group_norm.launch import group_norm_forward
from normlib.kernels.host import device_of, float_pair, on, statistics_dtype
from normlib.kernels.numerics import load, store
from normlib.kernels.plan import Device
from normlib.kernels.traffic import Moves, launch


@triton.jit(do_not_specialize=("N",))
def _instance_norm_running_kernel(
    running_mean_ptr,  # (C,), updated in place
    running_var_ptr,  # (C,), updated in place
    mean_ptr,  # (2, N * C): mean, low
    var_ptr,  # (N * C,)
    N,
    C,
    S,
    momentum,
    momentum_low,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Moves by momentum towards the mean over images of each channel's mean and unbiased variance, in float64."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    plane = tl.cast(N, tl.int64) * C
    means = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    variances = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    for start in range(0, N, BLOCK_N):
        image = start + tl.arange(0, BLOCK_N)[:, None]
        mask, at = (image < N) & (c < C), image.to(tl.int64) * C + c
        means += load(mean_ptr + at, mask, tl.float64) + load(mean_ptr + plane + at, mask, tl.float64)
        variances += load(var_ptr + at, mask, tl.float64)
    m = tl.zeros([1, BLOCK_C], tl.float64) + momentum + momentum_low
    n = tl.zeros([1, BLOCK_C], tl.float64) + N
    mean = tl.sum(means, 0, keep_dims=True) / n
    var = tl.sum(variances, 0, keep_dims=True) / n * (tl.cast(S, tl.float64) / (tl.cast(S, tl.float64) - 1.0))
    old_mean, old_var = load(running_mean_ptr + c, c < C, tl.float64), load(running_var_ptr + c, c < C, tl.float64)
    store(running_mean_ptr + c, old_mean * (1.0 - m) + mean * m, c < C)
    store(running_var_ptr + c, old_var * (1.0 - m) + var * m, c < C)


def instance_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    device: Device | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns group norm's (y, mean, rstd) with a channel a group; running buffers, if given, are updated in place."""
    images, channels = x.shape[:2]
    device = device or device_of(x)
    if running_mean is None or running_var is None or x.numel() == 0:
        return group_norm_forward(x, channels, weight, bias, eps, device)
    var = torch.empty(images * channels, dtype=statistics_dtype(x), device=x.device)
    y, mean, rstd = group_norm_forward(x, channels, weight, bias, eps, device, var)
    merge = plans.merge(images, channels, device)
    with on(x):
        launch(
            *(_instance_norm_running_kernel, (plans.cdiv(channels, merge.block_n),)),
            *(running_mean, running_var, mean, var, images, channels, x[0, 0].numel(), *float_pair(momentum)),
            BLOCK_N=merge.block_p,
            BLOCK_C=merge.block_n,
            **merge.options,
            moves=lambda: Moves(
                *(merge, dict.fromkeys(("running_mean", "running_var", "mean", "var"), 1)),
                ("running_mean", "running_var"),
            ),
        )
    return y, mean, rstd
