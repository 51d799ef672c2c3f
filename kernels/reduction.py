"""Moments and sums over many programs, merged in a fixed order: the same bits every time, no atomics.

A mean is kept as an unevaluated sum of two floats, `mean + low`. A float32 mean of size 1e4 alone is wrong by
some 6e-4, and that error would stay in every x - mean; with `low`, x - mean - low is as good as if the mean were 0.

Merging (count, mean, M2) follows Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
sample variances" (1979), equations 2.1: with delta = mean_b - mean_a and n = n_a + n_b

    mean = mean_a + delta n_b / n          M2 = M2_a + M2_b + delta^2 n_a n_b / n
"""

import triton
import triton.language as tl
from torch import Tensor

from normlib.kernels.numerics import INTERPRETED, accumulator, from_pair, load, reciprocal_sqrt, store
from normlib.kernels.plan import MergePlan
from normlib.kernels.traffic import Moves, launch


@triton.jit
def is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def upper_half(a):
    """A float32 without the lower 12 of its 24 bits: the product of two such is exact."""
    return (a.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)


@triton.jit
def rounded_square(a):
    """a a, rounded before anything is added to it.

    Where a thread has one term of a sum, its own square would be fused with the addition of a neighbour's, which was
    rounded; so the threads' copies of the sum would differ, and whose copy is stored would be a matter of chance.
    """
    return tl.fma(a, a, tl.zeros_like(a))


@triton.jit
def renormalize(a, b):
    """a + b as (high, low), exactly (Knuth's TwoSum)."""
    high = a + b
    b_part = high - a
    low = (a - (high - b_part)) + (b - b_part)
    return high, low


@triton.jit
def _add_pairs(a, b, c, d):
    return a + c, b + d


@triton.jit
def sum_pair(a, b, AXIS: tl.constexpr):
    """Returns the sums of both along AXIS, which is kept: with one exchange between threads for the two.

    The interpreter would add a pair's elements one after another.
    """
    if INTERPRETED:
        return tl.sum(a, AXIS, keep_dims=True), tl.sum(b, AXIS, keep_dims=True)
    else:
        return tl.reduce((a, b), AXIS, _add_pairs, keep_dims=True)


# ---------------------------------------------------------------------------------------------------------- moments


@triton.jit
def tile_moments(x, mask, count, AXIS: tl.constexpr, NARROW: tl.constexpr = False):
    """Returns (mean, low, M2) of a tile along AXIS; mask drops lanes, count is how many are left.

    The mean first, then what it missed, then M2 about both: never a difference of two large sums. NARROW says that x
    came in 16 bits: from a mean of few bits its differences are exact, and their sum as good as exact, so that `low`
    loses nothing beside an outlier. Such a mean is off by less than half of what x itself was rounded by; merging puts
    the bits that it lacks back into it.
    """
    mean = tl.sum(x, AXIS, keep_dims=True) / count
    if NARROW:
        mean = upper_half(mean)
    d = tl.where(mask, x - mean, 0.0)
    low = tl.sum(d, AXIS, keep_dims=True) / count
    d = tl.where(mask, d - low, 0.0)
    return mean, low, tl.sum(rounded_square(d), AXIS, keep_dims=True)


@triton.jit
def merge_moments(count_a, mean_a, low_a, m2_a, count_b, mean_b, low_b, m2_b):
    """Chan's formula for two disjoint sets, means as pairs; either may be empty."""
    count = count_a + count_b
    share = count_b / tl.maximum(count, 1.0)
    delta = tl.where(count_b == 0.0, 0.0, (mean_b - mean_a) + (low_b - low_a))
    # Onto an empty set delta would be all of mean_b, and low_b lost in it.
    empty = count_a == 0.0
    mean, low = renormalize(tl.where(empty, mean_b, mean_a), tl.where(empty, low_b, low_a + delta * share))
    # Beside an infinity low is NaN; its mean is that infinity all the same, or NaN beside another sign.
    mean = tl.where(is_finite(low), mean, mean_a + mean_b)
    # (delta n_a)(delta share), not delta^2 n_a share: the square of a large first mean would overflow against n_a = 0.
    return count, mean, low, m2_a + m2_b + (delta * count_a) * (delta * share)


@triton.jit
def merge_all_moments(counts, means, lows, m2s, mask, count, first_mean, AXIS: tl.constexpr):
    """Chan's formula for many sets at once along AXIS: (mean, low, M2) of their union, `count` elements in all.

    In float64, which these few values are worth: where one set's mean is far from the others', as an outlier's is, its
    product with a count and the sum over sets would each lose what `low` is there for. Means are taken about the first
    set's, so that where they are float64 themselves their differences, not their size, are what is rounded.
    """
    ACC: tl.constexpr = means.dtype
    counts, first = counts.to(tl.float64), first_mean.to(tl.float64)
    about_first = tl.where(mask, (means.to(tl.float64) - first) + lows.to(tl.float64), 0.0)
    shift = tl.sum(counts * about_first, AXIS, keep_dims=True) / count.to(tl.float64)
    d = tl.where(mask, about_first - shift, 0.0)
    m2 = tl.sum(m2s.to(tl.float64) + counts * (d * d), AXIS, keep_dims=True).to(ACC)
    high, rest = renormalize(first, shift)
    mean = high.to(ACC)
    low = ((high - mean.to(tl.float64)) + rest).to(ACC)
    mean = tl.where(is_finite(shift), mean, tl.sum(means, AXIS, keep_dims=True))
    return mean, tl.where(is_finite(shift), low, 0.0), m2


@triton.jit
def rstd_of(variance, eps, eps_low, ACC: tl.constexpr):
    """1 / sqrt(variance + eps), in float32 to little more than half an ulp.

    Sum, root and quotient round once each, and what they are off by is common to all of a statistic's elements: no mean
    takes it away. So a step of Newton's follows, rstd + rstd (1 - rstd^2 (variance + eps)) / 2. The bracket is a small
    rest of 1, and is found without loss because the products that cancel in it are of halves, and exact.
    """
    total = variance + from_pair(eps, eps_low, ACC)
    rstd = reciprocal_sqrt(total)
    if total.dtype == tl.float32:
        _, total_low = renormalize(variance, from_pair(eps, 0.0, ACC))
        total_low += eps_low
        upper = upper_half(rstd)
        square = upper * upper
        square_low = (rstd - upper) * (rstd + upper)
        square_upper, total_upper = upper_half(square), upper_half(total)
        rest = 1.0 - square_upper * total_upper
        rest -= square_upper * (total - total_upper) + (square - square_upper) * total
        rest -= square_low * total + square * total_low
        # A root of 0 or beyond the range leaves no finite rest; what it came out as is right then.
        rstd = tl.where(is_finite(rest), rstd + 0.5 * rstd * rest, rstd)
    return rstd


@triton.jit
def rstd_of_norm(norm, eps, eps_low, P: tl.constexpr, ACC: tl.constexpr):
    """1 / sigma of lp.py for a norm of order P, in float64 until its last rounding: a channel has but one."""
    norm = norm.to(tl.float64)
    square = from_pair(eps, eps_low, tl.float64)
    root = tl.sqrt(square)
    if P == "1":
        sigma = norm + root
    elif P == "2":
        sigma = tl.sqrt(norm * norm + square)
    else:
        sigma = tl.where(norm < root, root, norm)  # of NaN NaN
    return (1.0 / sigma).to(ACC)


# ------------------------------------------------------------------------------------------------------------- sums


@triton.jit
def accurate_sum(x, AXIS: tl.constexpr, KEEP: tl.constexpr = True):
    """Sum along AXIS, which is kept or not, wrong by little more than its own rounding, whatever the size of its terms.

    Each term is split at a bit common to all, so far up that the sum of upper parts is exact; the lower parts are below
    length / 2^22 of the largest term (Rump, Ogita and Oishi, "Accurate floating-point summation, part I" (2008),
    ExtractVector). Four operations a term: for sums over lanes and over programs, not over elements.
    """
    upper, lower = _split_at(x, tl.max(tl.abs(x), AXIS, keep_dims=True) * (4.0 * x.shape[AXIS]))
    return tl.sum(upper, AXIS, keep_dims=KEEP) + tl.sum(lower, AXIS, keep_dims=KEEP)


@triton.jit
def _larger_of_pairs(a, b, c, d):
    return tl.maximum(a, c), tl.maximum(b, d)


@triton.jit
def _add_fours(a, b, c, d, e, f, g, h):
    return a + e, b + f, c + g, d + h


@triton.jit
def accurate_sum_pair(a, b, AXIS: tl.constexpr):
    """Returns the accurate sums of both along AXIS, which is kept: with two exchanges between threads, not six."""
    if INTERPRETED:
        return accurate_sum(a, AXIS), accurate_sum(b, AXIS)
    else:
        top_a, top_b = tl.reduce((tl.abs(a), tl.abs(b)), AXIS, _larger_of_pairs, keep_dims=True)
        upper_a, lower_a = _split_at(a, top_a * (4.0 * a.shape[AXIS]))
        upper_b, lower_b = _split_at(b, top_b * (4.0 * a.shape[AXIS]))
        upper_a, lower_a, upper_b, lower_b = tl.reduce(
            (upper_a, lower_a, upper_b, lower_b), AXIS, _add_fours, keep_dims=True
        )
        return upper_a + lower_a, upper_b + lower_b


@triton.jit
def _split_at(x, top):
    """Returns (upper, lower) parts of x, whose sum it is; all of it in the upper where top is not finite."""
    upper = tl.where(is_finite(top), (x + top) - top, x)
    return upper, tl.where(is_finite(top), x - upper, 0.0)


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
    total = accurate_sum(lanes, 0, KEEP=False)
    if second_ptr is None or which == 0:
        store(first_ptr + n, total, n < N)
    else:
        store(second_ptr + n, total, n < N)


def sum_partials(partials: Tensor, outputs: tuple[Tensor | None, ...], plan: MergePlan) -> None:
    """Adds partials (len(outputs), P, N) over P in a fixed order into the one or two outputs, each of N elements."""
    _, programs, columns = partials.shape
    grid = (triton.cdiv(columns, plan.block_n), len(outputs))
    second = outputs[1] if len(outputs) == 2 else None
    launch(
        *(_sum_partials_kernel, grid, outputs[0], second, partials, programs, columns),
        BLOCK_P=plan.block_p,
        BLOCK_N=plan.block_n,
        **plan.options,
        moves=lambda: Moves(plan, {"partials": 1}, ("first", "second")),
    )
