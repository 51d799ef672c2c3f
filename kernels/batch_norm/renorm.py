"""Batch renormalization (Ioffe 2017, algorithm 1), by batch norm's sweeps.

Forward in training, over the n elements of a channel, with the running statistics from before the step:

    mean = sum(x) / n          std = sqrt(sum((x - mean)^2) / n + eps)        x_hat = (x - mean) / std
    r = clip(std / running_std, 1 / rmax, rmax)
    d = clip((mean - running_mean) / running_std, -dmax, dmax)
    y = (x_hat r + d) weight + bias
    running_mean <- running_mean + momentum (mean - running_mean)             running_std likewise, towards std

so that y is batch norm's with weight r in weight's place and bias + weight d in bias's. r and d have no gradient.
Backward is therefore batch norm's too, and what it sums becomes

    db = sum(dy)               dw = sum(dy (x_hat r + d)) = r sum(dy x_hat) + d db

In evaluation y = (x - running_mean) / running_std weight + bias: running_std has its eps in it.

Only the merge between the two sweeps is this file's own: it finds r and d, which are a few values a channel, and what
batch norm's second sweep then takes for weight and bias. Units of one activation moved: training forward 3, backward 5,
evaluation 2, as batch norm.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from normlib.kernels import plan as plans
from normlib.kernels.batch_norm.launch import batch_norm_backward
from normlib.kernels.batch_norm.statistics import merge_statistics
from normlib.kernels.batch_norm.sweeps import empty_statistics, launch_merge, normalize, partial_moments, planned
from normlib.kernels.batch_norm.tiles import BATCH, channel_values
from normlib.kernels.host import device_of, on
from normlib.kernels.numerics import accumulator, from_pair, load, store
from normlib.kernels.plan import Device
from normlib.kernels.traffic import Moves, launch


@triton.jit
def clip(x, least, most):
    """Returns x within [least, most]; NaN stays NaN, as in torch.clamp."""
    return tl.where(x < least, least, tl.where(x > most, most, x))


@triton.jit(do_not_specialize=BATCH)
def _batch_renorm_merge_kernel(
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,  # (C,)
    renorm_ptr,  # (4, C): r, d, weight r, bias + weight d
    running_mean_ptr,  # (C,), updated in place
    running_std_ptr,  # (C,), updated in place
    partials_ptr,  # (3, splits, C)
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    limits_ptr,  # (2,): rmax, dmax in place of the scalars, or None
    C,
    S,
    tiles,
    splits,
    eps,
    eps_low,
    momentum,
    momentum_low,
    rmax,
    rmax_low,
    dmax,
    dmax_low,
    BLOCK_S,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(partials_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_N
    c = c0 + tl.arange(0, BLOCK_N)[:, None]
    # Batch norm's statistics, and none of its running ones.
    mean, low, m2, n = merge_statistics(
        mean_ptr, rstd_ptr, None, None, partials_ptr, c0, C, S, tiles, splits,
        eps, eps_low, 0.0, 0.0, BLOCK_N, BLOCK_S, BLOCK_P, ACC
    )  # fmt: skip
    # In float64, as running statistics are: r and d are differences and quotients of values that are close.
    mean64 = mean.to(tl.float64) + low.to(tl.float64)
    std = tl.sqrt(m2.to(tl.float64) / n.to(tl.float64) + from_pair(eps, eps_low, tl.float64))
    old_mean = channel_values(running_mean_ptr, c0, C, BLOCK_N, tl.float64)
    old_std = tl.where(c < C, channel_values(running_std_ptr, c0, C, BLOCK_N, tl.float64), 1.0)
    most_r, most_d = from_pair(rmax, rmax_low, tl.float64), from_pair(dmax, dmax_low, tl.float64)
    if limits_ptr is not None:
        place = tl.zeros([1], tl.int32)
        most_r, most_d = load(limits_ptr + place, True, tl.float64), load(limits_ptr + place + 1, True, tl.float64)
    r = clip(std / old_std, 1.0 / most_r, most_r)
    d = clip((mean64 - old_mean) / old_std, -most_d, most_d)
    weight = tl.full([BLOCK_N, 1], 1.0, tl.float64)
    shift = d
    if weight_ptr is not None:
        weight = channel_values(weight_ptr, c0, C, BLOCK_N, tl.float64)
        shift = weight * d
    if bias_ptr is not None:
        shift += channel_values(bias_ptr, c0, C, BLOCK_N, tl.float64)
    store(renorm_ptr + c, r.to(ACC), c < C)
    store(renorm_ptr + C + c, d.to(ACC), c < C)
    store(renorm_ptr + 2 * tl.cast(C, tl.int64) + c, (weight * r).to(ACC), c < C)
    store(renorm_ptr + 3 * tl.cast(C, tl.int64) + c, shift.to(ACC), c < C)
    m = from_pair(momentum, momentum_low, tl.float64)
    store(running_mean_ptr + c, (old_mean + m * (mean64 - old_mean)).to(ACC), c < C)
    store(running_std_ptr + c, (old_std + m * (std - old_std)).to(ACC), c < C)


@triton.jit
def _batch_renorm_weight_gradient_kernel(
    dw_ptr,  # (C,): sum(dy x_hat), and then sum(dy (x_hat r + d)) in its place
    db_ptr,  # (C,): sum(dy)
    renorm_ptr,  # (4, C): r, d, ...
    C,
    BLOCK_N: tl.constexpr,
):
    c0 = tl.program_id(0) * BLOCK_N
    c = c0 + tl.arange(0, BLOCK_N)[:, None]
    # In float64: the two terms may cancel.
    r = channel_values(renorm_ptr, c0, C, BLOCK_N, tl.float64)
    d = channel_values(renorm_ptr + C, c0, C, BLOCK_N, tl.float64)
    dw = channel_values(dw_ptr, c0, C, BLOCK_N, tl.float64)
    db = channel_values(db_ptr, c0, C, BLOCK_N, tl.float64)
    store(dw_ptr + c, r * dw + d * db, c < C)


# ---------------------------------------------------------------------------------------------------------- launchers


def batch_renorm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_std: Tensor,
    momentum: float,
    eps: float,
    rmax: float,
    dmax: float,
    limits: Tensor | None = None,
    device: Device | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (y, mean (2, C), rstd (C,), renorm (4, C)) of x (N, C, *); running buffers are updated in place.

    renorm holds r, d, weight r and bias + weight d. `limits` (2,), where given, holds rmax and dmax instead.
    """
    x, device, plan = planned(x, device)
    y = torch.empty_like(x)
    mean, rstd = empty_statistics(x)
    renorm = mean.new_empty((4, plan.channels))
    if x.numel() == 0:
        return y, mean.zero_(), rstd.zero_(), renorm.zero_()
    with on(x):
        tensors = (mean, rstd, renorm, running_mean, running_std, partial_moments(x, plan), weight, bias, limits)
        launch_merge(_batch_renorm_merge_kernel, plan, device, *tensors, scalars=(eps, momentum, rmax, dmax))
        normalize(y, x, mean, rstd, renorm[2], renorm[3], plan)
    return y, mean, rstd, renorm


def batch_renorm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    renorm: Tensor,
    need_dx: bool,
    need_sums: bool,
    device: Device | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns (dx, dw, db) of x (N, C, *) in training; dw and db (C,) in the statistics' dtype; None if not needed.

    mean, rstd and renorm are as saved by the forward pass.
    """
    dx, dw, db = batch_norm_backward(dy, x, mean, rstd, renorm[2], 0.0, False, need_dx, need_sums, device)
    if need_sums:
        channels = x.shape[1]
        merge = plans.merge(1, channels, device or device_of(x))
        with on(x):
            launch(
                *(_batch_renorm_weight_gradient_kernel, (plans.cdiv(channels, merge.block_n),)),
                *(dw, db, renorm, channels),
                BLOCK_N=merge.block_n,
                **merge.options,
                moves=lambda: Moves(merge, {"dw": 1, "db": 1, "renorm": 1}, ("dw",), {"renorm": 2 * channels}),
            )
    return dx, dw, db
