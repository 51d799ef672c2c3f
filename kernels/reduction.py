"""Moments and sums over many programs, merged in a fixed order: the same bits every time, no atomics.

A mean is kept as an unevaluated sum of two floats, `mean + low`. A float32 mean of size 1e4 alone is wrong by
some 6e-4, and that error would stay in every x - mean; with `low`, x - mean - low is as good as if the mean were 0.

Merging (count, mean, M2) follows Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
sample variances" (1979), equations 2.1: with delta = mean_b - mean_a and n = n_a + n_b

    mean = mean_a + delta n_b / n          M2 = M2_a + M2_b + delta^2 n_a n_b / n
"""

import triton
import triton.language as tl

from normlib.kernels.numerics import accumulator, load, store


@triton.jit
def tile_moments(x, mask, count, AXIS: tl.constexpr):
    """(mean, low, M2) of a tile along AXIS; mask drops lanes, count is how many are left.

    The mean first, then what it missed, then M2 about both: never a difference of two large sums.
    """
    mean = tl.sum(x, AXIS, keep_dims=True) / count
    d = tl.where(mask, x - mean, 0.0)
    low = tl.sum(d, AXIS, keep_dims=True) / count
    d = tl.where(mask, d - low, 0.0)
    return mean, low, tl.sum(d * d, AXIS, keep_dims=True)


@triton.jit
def is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def merge_moments(count_a, mean_a, low_a, m2_a, count_b, mean_b, low_b, m2_b):
    """Chan's formula for two disjoint sets, means as pairs; either may be empty."""
    count = count_a + count_b
    share = count_b / tl.maximum(count, 1.0)
    delta = tl.where(count_b == 0.0, 0.0, (mean_b - mean_a) + (low_b - low_a))
    mean, low = renormalize(mean_a, low_a + delta * share)
    # Onto an empty set delta would be all of mean_b, and low_b lost in it.
    mean = tl.where(count_a == 0.0, mean_b, mean)
    low = tl.where(count_a == 0.0, low_b, low)
    # Beside an infinity low is NaN and so is delta; its mean is that infinity all the same, or NaN beside another sign.
    mean = tl.where(is_finite(delta), mean, mean_a + mean_b)
    # (delta n_a)(delta share), not delta^2 n_a share: the square of a large first mean would overflow against n_a = 0.
    return count, mean, low, m2_a + m2_b + (delta * count_a) * (delta * share)


@triton.jit
def renormalize(a, b):
    """a + b as (high, low), exactly (Knuth's TwoSum)."""
    high = a + b
    b_part = high - a
    low = (a - (high - b_part)) + (b - b_part)
    return high, low


@triton.jit
def merge_all_moments(counts, means, lows, m2s, mask, count, first_mean, AXIS: tl.constexpr):
    """Chan's formula for many sets at once along AXIS: (mean, low, M2) of their union, `count` elements in all.

    Means are taken about the first set's, so that their differences, not their size, are what is rounded.
    """
    about_first = tl.where(mask, (means - first_mean) + lows, 0.0)
    shift = tl.sum(counts * about_first, AXIS, keep_dims=True) / count
    mean, low = renormalize(first_mean, shift)
    mean = tl.where(is_finite(shift), mean, tl.sum(means, AXIS, keep_dims=True))
    low = tl.where(is_finite(shift), low, 0.0)
    d = tl.where(mask, about_first - shift, 0.0)
    return mean, low, tl.sum(m2s + counts * (d * d), AXIS, keep_dims=True)


@triton.jit(do_not_specialize=("P",))
def _sum_partials_kernel(
    first_ptr,  # (N,) sum of the first set of partials, any dtype
    second_ptr,  # (N,) of the second set, or None
    partials_ptr,  # (1 or 2, P, N) in the accumulation dtype
    P,
    N,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(partials_ptr.dtype)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    p = tl.arange(0, BLOCK_P)
    which = tl.program_id(1)
    base = partials_ptr + which.to(tl.int64) * P * N
    lanes = tl.zeros([BLOCK_P, BLOCK_N], ACC)
    for start in range(0, P, BLOCK_P):
        row = (start + p).to(tl.int64)[:, None]
        lanes += load(base + row * N + n[None, :], (row < P) & (n < N)[None, :], ACC)
    total = tl.sum(lanes, 0)
    if second_ptr is None or which == 0:
        store(first_ptr + n, total, n < N)
    else:
        store(second_ptr + n, total, n < N)


def sum_partials(partials, outputs, plan):
    """Adds partials (len(outputs), P, N) over P in a fixed order into the one or two outputs, each of N elements."""
    _, programs, columns = partials.shape
    grid = (triton.cdiv(columns, plan.block_n), len(outputs))
    second = outputs[1] if len(outputs) == 2 else None
    _sum_partials_kernel[grid](
        outputs[0],
        second,
        partials,
        programs,
        columns,
        BLOCK_P=plan.block_p,
        BLOCK_N=plan.block_n,
        **plan.options,
    )
