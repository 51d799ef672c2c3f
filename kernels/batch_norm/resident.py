"""Batch norm in one launch each way, contiguous: a program has one channel, which it keeps in registers.

So a tensor of short channels is loaded once, and no program asks another. A channel is IMAGES runs of S positions,
BLOCK_S lanes each. The other symbols are those of launch.py.
"""

import triton
import triton.language as tl

from normlib.kernels.batch_norm.output import normalized, scale_of, shift_of
from normlib.kernels.batch_norm.statistics import finish_statistics, load_running, statistics
from normlib.kernels.batch_norm.tiles import length
from normlib.kernels.numerics import accumulator, divide, load_narrow, store, widen
from normlib.kernels.reduction import is_finite, renormalize, sum_pair, tile_moments

N_AND_S = ("N", "S")


@triton.jit
def _channel(channel, N, C, S, ALIGN: tl.constexpr, IMAGES: tl.constexpr, BLOCK_S: tl.constexpr):
    """Returns (offsets of a channel's elements, mask)."""
    image = tl.arange(0, IMAGES)[:, None]
    s = tl.arange(0, BLOCK_S)[None, :]
    start = tl.cast(channel, tl.int64) * length(S, ALIGN)
    # Of ALIGN neighbours either all are there or none is: they share one comparison.
    return start + image.to(tl.int64) * C * length(S, ALIGN) + s, (length(s, ALIGN) < S) & (image < N)


@triton.jit
def _row(x):
    """Returns all of a channel's lanes in one row: loads and stores are wide along its runs, sums are over all."""
    return tl.reshape(x, [1, x.shape[0] * x.shape[1]])


@triton.jit(do_not_specialize=N_AND_S)
def _batch_norm_forward_resident_kernel(
    y_ptr,  # (N, C, S)
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,  # (C,)
    running_mean_ptr,  # (C,), updated in place, or None
    running_var_ptr,  # (C,), updated in place, or None
    x_ptr,  # (N, C, S)
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    N,
    C,
    S,
    eps,
    eps_low,
    momentum,
    momentum_low,
    ALIGN: tl.constexpr,
    IMAGES: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    NARROW: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth == 16
    channel = tl.program_id(0)
    offsets, mask = _channel(channel, N, C, S, ALIGN, IMAGES, BLOCK_S)
    x = _row(load_narrow(x_ptr + offsets, mask))
    n = (tl.cast(N, tl.int64) * S).to(ACC)
    mean, low, m2 = tile_moments(widen(x, ACC), _row(mask), n, 1, NARROW)
    high, rest = renormalize(mean, low)
    mean = tl.where(is_finite(rest), high, mean)
    low = tl.where(is_finite(rest), rest, 0.0)
    old_mean, old_var = load_running(running_mean_ptr, running_var_ptr, channel, C, 1)
    rstd = finish_statistics(
        mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, old_mean, old_var, mean, low, m2, n,
        channel, C, eps, eps_low, momentum, momentum_low, 1, ACC
    )  # fmt: skip
    scale = scale_of(rstd, weight_ptr, channel, C, 1, ACC)
    shift = shift_of(bias_ptr, low, scale, channel, C, 1, ACC)
    store(y_ptr + offsets, tl.reshape(normalized(widen(x, ACC), mean, scale, shift), mask.shape), mask)


@triton.jit(do_not_specialize=N_AND_S)
def _batch_norm_backward_resident_kernel(
    dx_ptr,  # (N, C, S)
    dw_ptr,  # (C,): sum(dy x_hat), in the statistics' dtype
    db_ptr,  # (C,): sum(dy)
    dy_ptr,  # (N, C, S)
    x_ptr,  # (N, C, S)
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,  # (C,)
    weight_ptr,  # (C,) or None
    N,
    C,
    S,
    ALIGN: tl.constexpr,
    IMAGES: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    channel = tl.program_id(0)
    offsets, mask = _channel(channel, N, C, S, ALIGN, IMAGES, BLOCK_S)
    x, dy = _row(load_narrow(x_ptr + offsets, mask)), _row(load_narrow(dy_ptr + offsets, mask))
    mean, low, rstd = statistics(mean_ptr, rstd_ptr, 0.0, 0.0, channel, C, False, 1, ACC)
    scale = scale_of(rstd, weight_ptr, channel, C, 1, ACC)
    wide = widen(dy, ACC)
    dw, db = sum_pair(wide * (widen(x, ACC) - mean), wide, 1)
    dw = (dw - low * db) * rstd
    at = channel + tl.zeros([1, 1], tl.int32)
    store(dw_ptr + at, dw, at < C)
    store(db_ptr + at, db, at < C)
    # dx = scale (dy - db / n) + (x - mean) slope + rest
    n = (tl.cast(N, tl.int64) * S).to(ACC)
    c2 = divide(db, tl.zeros_like(db) + n)
    slope = -scale * divide(dw * rstd, tl.zeros_like(dw) + n)
    dx = scale * (widen(dy, ACC) - c2) + ((widen(x, ACC) - mean) * slope - low * slope)
    store(dx_ptr + offsets, tl.reshape(dx, mask.shape), mask)
