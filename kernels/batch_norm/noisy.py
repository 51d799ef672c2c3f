"""Batch norm followed by noise (Santurkar et al. 2018, section 2.2), by batch norm's sweeps.

In training, of element i of channel c, after weight and bias,

    y_i = s_i (x_hat_i weight + bias) + m_i
    s_i ~ N(sigma_c, std_spread)                        sigma_c ~ U(1, std_limit)
    m_i ~ U(mu_c - mean_spread, mu_c + mean_spread)     mu_c ~ U(-mean_limit, mean_limit)

where mu and sigma are one for all channels, or one a channel, and all is drawn anew in every step. So the moments of
what a layer gets change at random from step to step. Backward is batch norm's with s dy in dy's place:

    dx = weight rstd (s dy - db / n - x_hat dw / n)      db = sum(s dy)      dw = sum(s dy x_hat)

s is not kept: noise.py draws it from the seed again. Its float32 errors are an ulp of z, and so less than one of s, of
which z is a tenth. The streaming plan moves what it does for batch norm, forward 3 units and backward 5. Evaluation has
no noise, and is batch norm's.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from normlib.kernels.batch_norm import plan as batch_norm_plan
from normlib.kernels.batch_norm.noise import UNITS, uniform, words
from normlib.kernels.batch_norm.statistics import merge_statistics
from normlib.kernels.batch_norm.sweeps import empty_statistics, launch_merge, normalize, partial_moments, planned
from normlib.kernels.batch_norm.tiles import BATCH
from normlib.kernels.host import on
from normlib.kernels.numerics import accumulator, from_pair, store
from normlib.kernels.plan import Device


@triton.jit(do_not_specialize=BATCH)
def _noisy_batch_norm_merge_kernel(
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,  # (C,)
    noise_ptr,  # (4, C): sigma, std_spread, mu - mean_spread, 2 mean_spread
    running_mean_ptr,  # (C,), updated in place, or None
    running_var_ptr,  # (C,), updated in place, or None
    partials_ptr,  # (3, splits, C)
    seed_ptr,  # ()
    C,
    S,
    tiles,
    splits,
    eps,
    eps_low,
    momentum,
    momentum_low,
    mean_limit,
    mean_limit_low,
    std_limit,
    std_limit_low,
    mean_spread,
    mean_spread_low,
    std_spread,
    std_spread_low,
    BLOCK_S,
    PER_UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(partials_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_N
    c = c0 + tl.arange(0, BLOCK_N)[:, None]
    merge_statistics(
        mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, partials_ptr, c0, C, S, tiles, splits,
        eps, eps_low, momentum, momentum_low, BLOCK_N, BLOCK_S, BLOCK_P, ACC
    )  # fmt: skip
    unit = c if PER_UNIT else c * 0
    of_mean, of_std, _, _ = words(tl.load(seed_ptr), unit.to(tl.int64) * 0, unit, UNITS)
    limit = from_pair(mean_limit, mean_limit_low, tl.float64)
    mu = (2.0 * uniform(of_mean, tl.float64) - 1.0) * limit
    sigma = 1.0 + uniform(of_std, tl.float64) * (from_pair(std_limit, std_limit_low, tl.float64) - 1.0)
    spread = from_pair(mean_spread, mean_spread_low, tl.float64)
    store(noise_ptr + c, sigma.to(ACC), c < C)
    store(noise_ptr + C + c, (sigma * 0.0 + from_pair(std_spread, std_spread_low, tl.float64)).to(ACC), c < C)
    store(noise_ptr + 2 * tl.cast(C, tl.int64) + c, (mu - spread).to(ACC), c < C)
    store(noise_ptr + 3 * tl.cast(C, tl.int64) + c, (mu * 0.0 + 2.0 * spread).to(ACC), c < C)


def noisy_batch_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    seed: Tensor,
    per_unit: bool,
    ranges: list[float],
    device: Device | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (y, mean (2, C), rstd (C,), noise (4, C)) of x (N, C, *); running buffers are updated in place.

    seed: an int64. ranges: mean_limit, std_limit, mean_spread, std_spread. noise and seed are what backward takes.
    """
    x, device, plan = planned(x, device)
    y = torch.empty_like(x)
    mean, rstd = empty_statistics(x)
    noise = mean.new_empty((4, plan.channels))
    if x.numel() == 0:
        return y, mean.zero_(), rstd.zero_(), noise.zero_()
    with on(x):
        tensors = (mean, rstd, noise, running_mean, running_var, partial_moments(x, plan), seed)
        scalars = (eps, momentum, *ranges)
        launch_merge(_noisy_batch_norm_merge_kernel, plan, device, *tensors, scalars=scalars, PER_UNIT=per_unit)
        drawing = batch_norm_plan.batch_norm_drawing(plan, device)
        normalize(y, x, mean, rstd, weight, bias, drawing, noise_ptr=noise, seed_ptr=seed)
    return y, mean, rstd, noise
