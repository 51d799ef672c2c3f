"""The forward kernel of rows that are several programs', a slice each, which wait for each other.

A program keeps the columns of weight for all of its rows, and a row's values until the statistics of the whole row are
known: x is loaded once. The symbols are those of launch.py.
"""

import triton
import triton.language as tl

from normlib.kernels.barrier import arrive, leave, wait
from normlib.kernels.numerics import accumulator, divide, load, load_narrow, round_to, store, widen
from normlib.kernels.reduction import is_finite, renormalize, rstd_of, sum_pair
from normlib.kernels.row_norm.values import aligned, load_row, save_statistics
from normlib.kernels.row_norm.wide import BATCH


# Blocks have one dimension here, and statistics none: the few moments of a row, loaded as a tile, would impose their
# layout on all that is computed with them.
@triton.jit(do_not_specialize=BATCH)
def _row_norm_forward_sliced_kernel(
    y_ptr,  # (M, N)
    mean_ptr,  # (2, M): mean, low; or None
    rstd_ptr,  # (M,)
    moments_ptr,  # (M, 3, SLICES): mean, low, M2 of every slice; or (M, 1, SLICES): sum(x^2)
    arrived_ptr,  # (2, programs) zeros: slices that have arrived, and left
    x_ptr,  # (M, N), rows x_stride apart
    weight_ptr,  # (N,) or None
    bias_ptr,  # (N,) or None
    residual_ptr,  # (M, N), rows residual_stride apart, or None
    z_ptr,  # (M, N), or None without a residual
    M,
    x_stride,
    residual_stride,
    eps,
    eps_low,
    ALIGN: tl.constexpr,
    N: tl.constexpr,
    PARTIAL_N: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SLICES: tl.constexpr,  # up to a power of two
    AHEAD: tl.constexpr,  # whether the next row is loaded while this one waits for its other slices
    CENTRED: tl.constexpr,
    ZERO_CENTRED: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    WIDTH: tl.constexpr = CHUNKS * BLOCK_N
    EVEN: tl.constexpr = N % WIDTH == 0
    x_stride = aligned(x_stride, ALIGN)
    residual_stride = aligned(residual_stride, ALIGN)
    part, slices = tl.program_id(0), tl.num_programs(0)
    group, groups = tl.program_id(1), tl.num_programs(1)
    block = tl.arange(0, BLOCK_N)
    for _ in tl.static_range(CHUNKS):  # multiplied by a WIDTH that is no power of two, its alignment would be lost
        block += part * BLOCK_N
    only = group * 0  # weight and bias are a row each
    if weight_ptr is not None:
        weights = load_row(weight_ptr, only, block, 1, N, CHUNKS, EVEN)

    if AHEAD:
        next_xs = load_row(x_ptr + group.to(tl.int64) * x_stride, group, block, M, N, CHUNKS, EVEN)
    for row in range(group, M, groups):
        long_row = tl.cast(row, tl.int64)
        xs = next_xs if AHEAD else load_row(x_ptr + long_row * x_stride, row, block, M, N, CHUNKS, EVEN)
        if residual_ptr is not None:
            residuals = load_row(residual_ptr + long_row * residual_stride, row, block, M, N, CHUNKS, EVEN)
            zs = ()
            for i in tl.static_range(CHUNKS):
                n = i * BLOCK_N + block
                z = round_to(widen(xs[i], ACC) + widen(residuals[i], ACC), z_ptr.dtype.element_ty)
                store(z_ptr + long_row * N + n, z, (n < N) | EVEN)
                zs = zs + (z,)
            xs = zs

        of_row = moments_ptr + long_row * ((3 if CENTRED else 1) * SLICES)
        _store_moments(of_row, xs, block, part, N, PARTIAL_N, CHUNKS, BLOCK_N, SLICES, EVEN, CENTRED, ACC)
        arrive(arrived_ptr + group)
        if AHEAD:
            ahead = tl.minimum(row + groups, M)
            next_xs = load_row(x_ptr + tl.cast(ahead, tl.int64) * x_stride, ahead, block, M, N, CHUNKS, EVEN)
        wait(arrived_ptr + group, slices * ((row - group) // groups + 1))
        mean, low, m2 = _load_moments(of_row, N, WIDTH, SLICES, CENTRED, ACC)
        rstd = tl.sum(rstd_of(divide(m2, m2 * 0.0 + PARTIAL_N), eps, eps_low, ACC), 0)
        if part == 0:
            save_statistics(mean_ptr, rstd_ptr, row, M, mean, low, rstd, CENTRED)

        for begin in tl.static_range(0, CHUNKS, 4):
            biases = ()
            if bias_ptr is not None:
                for i in tl.static_range(begin, min(begin + 4, CHUNKS)):
                    n = i * BLOCK_N + block
                    biases = biases + (load_narrow(bias_ptr + n, (n < N) | EVEN),)
            for i in tl.static_range(begin, min(begin + 4, CHUNKS)):
                n = i * BLOCK_N + block
                x = widen(xs[i], ACC)
                y = tl.fma(x - mean, rstd, -low * rstd) if CENTRED else x * rstd
                if weight_ptr is not None:
                    y *= widen(weights[i], ACC) + (1.0 if ZERO_CENTRED else 0.0)
                if bias_ptr is not None:
                    y += widen(biases[i - begin], ACC)
                store(y_ptr + long_row * N + n, y, (n < N) | EVEN)
    leave(arrived_ptr + groups + group, slices, arrived_ptr + group)


@triton.jit
def _store_moments(
    moments_ptr,
    xs,
    block,
    part,
    N: tl.constexpr,
    PARTIAL_N: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SLICES: tl.constexpr,
    EVEN: tl.constexpr,
    CENTRED: tl.constexpr,
    ACC: tl.constexpr,
):
    """Stores the (mean, low, M2) of one slice of a row, or without CENTRED the sum of its squares."""
    lanes = tl.zeros([BLOCK_N], ACC)
    squares = tl.zeros([BLOCK_N], ACC)
    if CENTRED:
        count = tl.minimum(N - part * (CHUNKS * BLOCK_N), CHUNKS * BLOCK_N).to(ACC)
        for i in tl.static_range(CHUNKS):
            lanes += widen(xs[i], ACC)
        mean = tl.sum(lanes, 0) / count
        lanes = tl.zeros([BLOCK_N], ACC)
        for i in tl.static_range(CHUNKS):
            d = tl.where((i * BLOCK_N + block < N) | EVEN, widen(xs[i], ACC) - mean, 0.0)
            lanes += d
            squares += d * d
        total, square = sum_pair(lanes, squares, 0)
        total, square = tl.sum(total, 0), tl.sum(square, 0)
        low = total / count
        store(moments_ptr + part, mean, True)
        store(moments_ptr + SLICES + part, low, True)
        store(moments_ptr + 2 * SLICES + part, square - total * low, True)
    else:
        for i in tl.static_range(CHUNKS):
            x = widen(xs[i], ACC)
            if PARTIAL_N < N:  # else what is past the row's end is zero
                x = tl.where(i * BLOCK_N + block < PARTIAL_N, x, 0.0)
            squares += x * x
        store(moments_ptr + part, tl.sum(squares, 0), True)


@triton.jit
def _load_moments(
    moments_ptr, N: tl.constexpr, WIDTH: tl.constexpr, SLICES: tl.constexpr, CENTRED: tl.constexpr, ACC: tl.constexpr
):
    """Returns (mean, low, M2) of a row from what its slices stored, by sums about the first slice's mean.

    Products are rounded before they are added: where threads fused them with an addition, their copies of a sum would
    differ.
    """
    k = tl.arange(0, SLICES)
    mask = k * WIDTH < N
    if CENTRED:
        first = tl.load(moments_ptr)
        means = load(moments_ptr + k, mask, ACC)
        lows = load(moments_ptr + SLICES + k, mask, ACC)
        m2s = load(moments_ptr + 2 * SLICES + k, mask, ACC)
        count = tl.where(mask, tl.minimum(N - k * WIDTH, WIDTH), 0).to(ACC)
        delta = tl.where(mask, (means - first) + lows, 0.0)
        shift = tl.sum(tl.fma(count, delta, tl.zeros_like(delta)), 0) / N
        rest = tl.where(mask, delta - shift, 0.0)
        mean, low = renormalize(first, shift)
        mean = tl.where(is_finite(low), mean, tl.sum(means, 0))
        return mean, tl.where(is_finite(low), low, 0.0), tl.sum(tl.fma(count * rest, rest, m2s), 0)
    else:
        return 0.0, 0.0, tl.sum(load(moments_ptr + k, mask, ACC), 0)
