"""The statistics of batch norm: moments of a split's tiles, their merge over splits, and what is kept of them.

Merging is Chan's formula in a fixed order (reduction.py). The symbols are those of launch.py.
"""

import triton
import triton.language as tl

from normlib.kernels.batch_norm.activation import load_input
from normlib.kernels.batch_norm.tiles import addresses, channel_values, elements_before
from normlib.kernels.numerics import divide, even_share, from_pair, load, store
from normlib.kernels.reduction import (
    is_finite,
    merge_all_moments,
    merge_moments,
    rstd_of,
    rstd_of_norm,
    tile_moments,
)


@triton.jit
def moments_of_tiles(
    x_ptr,
    first,
    last,
    c0,
    C,
    S,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ACC: tl.constexpr,
):
    """Returns (mean, low, M2) of tiles [first, last): a column each."""
    NARROW: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth == 16
    count = tl.zeros([1, 1], ACC)
    mean = tl.zeros([BLOCK_C, 1], ACC)
    low = tl.zeros([BLOCK_C, 1], ACC)
    m2 = tl.zeros([BLOCK_C, 1], ACC)
    for tile in range(first, last):
        base, offsets, mask, elements = addresses(tile, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        x = load_input(x_ptr + base + offsets, mask, PRE_RELU, ACC)
        tile_count = elements.to(ACC)
        tile_mean, tile_low, tile_m2 = tile_moments(x, mask, tile_count, 1, NARROW)
        count, mean, low, m2 = merge_moments(count, mean, low, m2, tile_count, tile_mean, tile_low, tile_m2)
    # Beside an infinite mean low is NaN; what adds the two must find that infinity.
    return mean, tl.where(is_finite(low), low, 0.0), m2


@triton.jit
def merge_splits(
    partials_ptr,
    c0,
    C,
    S,
    tiles,
    splits,
    BLOCK_C: tl.constexpr,
    BLOCK_S,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
    HAS_M2: tl.constexpr = True,
):
    """Returns (mean, low, M2) of BLOCK_C channels from the partials (3, splits, C) of all splits, in a fixed order.

    Without HAS_M2 there are two planes of those, and M2 is not to be used.
    """
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    p = tl.arange(0, BLOCK_P)[None, :]
    plane = tl.cast(splits, tl.int64) * C

    # Lane p of a channel takes splits p, p + BLOCK_P, ...; then the lanes are merged at once.
    count = tl.zeros([1, BLOCK_P], ACC)
    mean = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    low = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    m2 = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    for start in range(0, splits, BLOCK_P):
        split = start + p
        mask = (split < splits) & (c < C)
        first, last = even_share(split, splits, tiles)
        elements = elements_before(last, S, BLOCK_S) - elements_before(first, S, BLOCK_S)
        split_count = tl.where(split < splits, elements, 0).to(ACC)
        source = partials_ptr + split.to(tl.int64) * C + c
        count, mean, low, m2 = merge_moments(
            count,
            mean,
            low,
            m2,
            split_count,
            load(source, mask, ACC),
            load(source + plane, mask, ACC),
            load(source + 2 * plane, mask, ACC) if HAS_M2 else tl.zeros_like(low),
        )
    n = elements_before(tiles, S, BLOCK_S).to(ACC)
    first_mean = tl.sum(tl.where(p == 0, mean, 0.0), 1, keep_dims=True)
    return merge_all_moments(count, mean, low, m2, p < splits, n, first_mean, 1)


@triton.jit
def finish_statistics(
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,  # (C,)
    running_mean_ptr,  # (C,), updated in place, or None
    running_var_ptr,  # (C,), updated in place, or None
    mean,
    low,
    m2,
    n,
    mine,  # whether this program is the one that stores
    c0,
    C,
    eps,
    eps_low,
    momentum,
    momentum_low,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """Returns rstd of a channel group from the moments of all its n elements; one program stores what is kept."""
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    mask = (c < C) & mine
    rstd = rstd_of(divide(m2, n), eps, eps_low, ACC)
    store(mean_ptr + c, mean, mask)
    store(mean_ptr + C + c, low, mask)
    store(rstd_ptr + c, rstd, mask)
    if running_mean_ptr is not None:
        # In float64: these few values are kept for the whole of a training, and go through three roundings otherwise.
        m = from_pair(momentum, momentum_low, tl.float64)
        old_mean = load(running_mean_ptr + c, mask, tl.float64)
        old_var = load(running_var_ptr + c, mask, tl.float64)
        new_mean = mean.to(tl.float64) + low.to(tl.float64)
        unbiased = m2.to(tl.float64) / (n.to(tl.float64) - 1.0)
        store(running_mean_ptr + c, (old_mean * (1.0 - m) + new_mean * m).to(ACC), mask)
        store(running_var_ptr + c, (old_var * (1.0 - m) + unbiased * m).to(ACC), mask)
    return rstd


@triton.jit
def merge_statistics(
    mean_ptr,
    rstd_ptr,
    running_mean_ptr,
    running_var_ptr,
    partials_ptr,  # (3, splits, C)
    c0,
    C,
    S,
    tiles,
    splits,
    eps,
    eps_low,
    momentum,
    momentum_low,
    BLOCK_C: tl.constexpr,
    BLOCK_S,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    """Returns (mean, low, M2, n) of a channel group from the partials of all splits; what is kept of them is stored."""
    mean, low, m2 = merge_splits(partials_ptr, c0, C, S, tiles, splits, BLOCK_C, BLOCK_S, BLOCK_P, ACC)
    n = elements_before(tiles, S, BLOCK_S)
    finish_statistics(
        mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, mean, low, m2, n.to(ACC), True, c0, C,
        eps, eps_low, momentum, momentum_low, BLOCK_C, ACC
    )  # fmt: skip
    return mean, low, m2, n


@triton.jit
def statistics(
    mean_ptr,
    rstd_ptr,
    eps,
    eps_low,
    c0,
    C,
    EVAL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
    P: tl.constexpr = None,
    STD: tl.constexpr = False,
):
    """Returns (mean, low, rstd) of a channel group: as saved, or in evaluation from running_mean and running_var.

    With P, the order of a norm (lp.py), from running_mean and running_norm; with STD from running_mean and a
    running standard deviation, to which no eps is to be added.
    """
    mean = channel_values(mean_ptr, c0, C, BLOCK_C, ACC)
    if EVAL and P is not None:
        norm = channel_values(rstd_ptr, c0, C, BLOCK_C, ACC)
        return mean, tl.zeros_like(mean), rstd_of_norm(norm, eps, eps_low, P, ACC)
    elif EVAL and STD:
        std = channel_values(rstd_ptr, c0, C, BLOCK_C, ACC)
        c = c0 + tl.arange(0, BLOCK_C)[:, None]
        std = tl.where(c < C, std, 1.0)
        return mean, tl.zeros_like(mean), divide(tl.full([BLOCK_C, 1], 1.0, ACC), std)
    elif EVAL:
        variance = channel_values(rstd_ptr, c0, C, BLOCK_C, ACC)
        return mean, tl.zeros_like(mean), rstd_of(variance, eps, eps_low, ACC)
    else:
        low = channel_values(mean_ptr + C, c0, C, BLOCK_C, ACC)
        return mean, low, channel_values(rstd_ptr, c0, C, BLOCK_C, ACC)
