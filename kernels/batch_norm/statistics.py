"""The statistics of batch norm: moments of a split's tiles, their merge over splits, and what is kept of them.

Everything is added in a fixed order. The symbols are those of launch.py.
"""

import triton
import triton.language as tl

from normlib.kernels.batch_norm.activation import load_input
from normlib.kernels.batch_norm.tiles import (
    channel_values,
    elements_before,
    mask_of_tile,
    next_tile,
    offsets_in_tile,
    start_of_tile,
    store_planes,
)
from normlib.kernels.numerics import divide, even_share, from_pair, load, store
from normlib.kernels.reduction import (
    is_finite,
    merge_moments,
    renormalize,
    rstd_of,
    rstd_of_norm,
    sum_pair,
    tile_moments,
    upper_half,
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
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    """Returns (mean, low, M2) of tiles [first, last), a column each; M2 is NaN where they are in doubt.

    Each lane adds up d and d^2, d being the distance from the first tile's mean, and lanes are added once at the end:

        mean = first tile's mean + sum(d) / n            M2 = sum(d^2) - sum(d)^2 / n

    Where more than half of sum(d^2) cancels, the first tile is far from the rest, and the channel is in doubt: then
    moments_tile_by_tile is to be asked. So it is beside an infinity or a NaN.
    """
    offsets = offsets_in_tile(C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
    start, s0 = start_of_tile(first, c0, C, S, LAST, ALIGN, BLOCK_S)
    mask = mask_of_tile(s0, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
    x = load_input(x_ptr + start + offsets, mask, PRE_RELU, ACC)
    pivot = tl.sum(x, 1, keep_dims=True) / tl.minimum(BLOCK_S, S - s0).to(ACC)
    if x_ptr.dtype.element_ty.primitive_bitwidth == 16:
        pivot = upper_half(pivot)  # d is exact then, and so are its sums, beside an outlier too
    # A masked element is 0, and so is its distance from a 0 in the pivot's place.
    d = x - tl.where(mask, pivot, 0.0)
    sums = d
    squares = d * d
    for _ in tl.range(first + 1, last, num_stages=STAGES):
        start, s0 = next_tile(start, s0, C, S, LAST, ALIGN, BLOCK_S)
        mask = mask_of_tile(s0, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        x = load_input(x_ptr + start + offsets, mask, PRE_RELU, ACC)
        d = x - tl.where(mask, pivot, 0.0)
        sums += d
        squares += d * d
    n = (elements_before(last, S, BLOCK_S) - elements_before(first, S, BLOCK_S)).to(ACC)
    total = tl.sum(sums, 1, keep_dims=True)
    square = tl.sum(squares, 1, keep_dims=True)
    shift = divide(total, tl.zeros_like(total) + n)
    mean, low = renormalize(pivot, shift)
    m2 = square - total * shift
    return mean, low, tl.where((m2 >= 0.5 * square) & is_finite(square), m2, float("nan"))


@triton.jit
def moments_of_tile(
    x_ptr,
    tile,
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
    """Returns (number of elements, mean, low, M2) of one tile, a column each."""
    NARROW: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth == 16
    start, s0 = start_of_tile(tile, c0, C, S, LAST, ALIGN, BLOCK_S)
    mask = mask_of_tile(s0, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
    x = load_input(x_ptr + start + offsets_in_tile(C, S, LAST, ALIGN, BLOCK_C, BLOCK_S), mask, PRE_RELU, ACC)
    count = tl.minimum(BLOCK_S, S - s0).to(ACC)
    mean, low, m2 = tile_moments(x, mask, count, 1, NARROW)
    return count, mean, low, m2


@triton.jit
def any_in_doubt(m2):
    return tl.max((m2 != m2).to(tl.int32)) > 0


@triton.jit
def moments_tile_by_tile(
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
    """Returns the same, by three sums a tile and Chan's formula between tiles: right for any data, and slow."""
    count = tl.zeros([1, 1], ACC)
    mean = tl.zeros([BLOCK_C, 1], ACC)
    low = tl.zeros([BLOCK_C, 1], ACC)
    m2 = tl.zeros([BLOCK_C, 1], ACC)
    for tile in range(first, last):
        tile_count, tile_mean, tile_low, tile_m2 = moments_of_tile(
            x_ptr, tile, c0, C, S, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC
        )
        count, mean, low, m2 = merge_moments(count, mean, low, m2, tile_count, tile_mean, tile_low, tile_m2)
    # Beside an infinite mean low is NaN; what adds the two must find that infinity.
    return mean, tl.where(is_finite(low), low, 0.0), m2


@triton.jit
def store_moments(
    partials_ptr,  # (3, splits, C)
    split,
    splits,
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
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    """Stores (mean, low, M2) of tiles [first, last), one split's; with STAGES = 0 that is one tile."""
    if STAGES == 0:
        _, mean, low, m2 = moments_of_tile(x_ptr, first, c0, C, S, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC)
        store_planes(partials_ptr, split, splits, c0, C, mean, tl.where(is_finite(low), low, 0.0), m2, BLOCK_C)
    else:
        mean, low, m2 = moments_of_tiles(
            x_ptr, first, last, c0, C, S, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, STAGES, ACC
        )
        store_planes(partials_ptr, split, splits, c0, C, mean, low, m2, BLOCK_C)
        if any_in_doubt(m2):
            tl.debug_barrier()
            store_moments_tile_by_tile(
                partials_ptr, split, splits, x_ptr, first, last, c0, C, S, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC
            )


@triton.jit(noinline=True)  # rarely called: its registers and instructions are not to weigh on the fast path
def store_moments_tile_by_tile(
    partials_ptr,
    split,
    splits,
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
    """Stores the same again of the channels that are in doubt."""
    mean, low, m2 = moments_tile_by_tile(x_ptr, first, last, c0, C, S, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC)
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    out = partials_ptr + tl.cast(split, tl.int64) * C + c
    plane = tl.cast(splits, tl.int64) * C
    before = load(out + 2 * plane, c < C, ACC)
    doubt = before != before
    store(out, mean, doubt)
    store(out + plane, low, doubt)
    store(out + 2 * plane, m2, doubt)


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

    By sums about the first split's mean, as those of a tile's lanes, and in float64, which loses nothing where that
    mean is far from the others. Without HAS_M2 there are two planes of partials, and M2 is not to be used.
    """
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    p = tl.arange(0, BLOCK_P)[None, :]
    plane = tl.cast(splits, tl.int64) * C
    pivot = load(partials_ptr + c, c < C, tl.float64)
    pivot = tl.where(is_finite(pivot), pivot, 0.0)  # an infinite mean is then added like the others
    # Lane p of a channel takes splits p, p + BLOCK_P, ...; then the lanes are added.
    sums = tl.zeros([BLOCK_C, BLOCK_P], tl.float64)
    squares = tl.zeros([BLOCK_C, BLOCK_P], tl.float64)
    for begin in range(0, splits, BLOCK_P):
        split = begin + p
        mask = (split < splits) & (c < C)
        first, last = even_share(split, splits, tiles)
        count = (elements_before(last, S, BLOCK_S) - elements_before(first, S, BLOCK_S)).to(tl.float64)
        source = partials_ptr + split.to(tl.int64) * C + c
        mean = load(source, mask, tl.float64)
        d = tl.where(mask, (mean - pivot) + load(source + plane, mask, tl.float64), 0.0)
        sums += count * d
        squares += count * d * d
        if HAS_M2:
            squares += load(source + 2 * plane, mask, tl.float64)
    total, square = sum_pair(sums, squares, 1)
    # Each channel's quotient would be waited for; in float64 a product is as good.
    shift = total * (1.0 / elements_before(tiles, S, BLOCK_S).to(tl.float64))
    high, rest = renormalize(pivot, shift)
    mean = high.to(ACC)
    low = ((high - mean.to(tl.float64)) + rest).to(ACC)
    return mean, tl.where(is_finite(low), low, 0.0), (square - total * shift).to(ACC)


@triton.jit
def load_running(running_mean_ptr, running_var_ptr, c0, C, BLOCK_C: tl.constexpr):
    """Returns a channel group's running statistics in float64; zeros where there are none."""
    if running_mean_ptr is not None:
        old_mean = channel_values(running_mean_ptr, c0, C, BLOCK_C, tl.float64)
        return old_mean, channel_values(running_var_ptr, c0, C, BLOCK_C, tl.float64)
    else:
        return tl.zeros([BLOCK_C, 1], tl.float64), tl.zeros([BLOCK_C, 1], tl.float64)


@triton.jit
def finish_statistics(
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,  # (C,)
    running_mean_ptr,  # (C,), updated in place, or None
    running_var_ptr,  # (C,), updated in place, or None
    old_mean,  # as load_running has returned them, well before they are needed
    old_var,
    mean,
    low,
    m2,
    n,
    c0,
    C,
    eps,
    eps_low,
    momentum,
    momentum_low,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """Returns rstd of a channel group from the moments of all its n elements; stores what is kept."""
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    mask = c < C
    rstd = rstd_of(divide(m2, n), eps, eps_low, ACC)
    store(mean_ptr + c, mean, mask)
    store(mean_ptr + C + c, low, mask)
    store(rstd_ptr + c, rstd, mask)
    if running_mean_ptr is not None:
        # In float64: these few values are kept for the whole of a training, and go through three roundings otherwise.
        m = from_pair(momentum, momentum_low, tl.float64)
        new_mean = mean.to(tl.float64) + low.to(tl.float64)
        unbiased = m2.to(tl.float64) * (1.0 / (n.to(tl.float64) - 1.0))
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
    old_mean, old_var = load_running(running_mean_ptr, running_var_ptr, c0, C, BLOCK_C)
    mean, low, m2 = merge_splits(partials_ptr, c0, C, S, tiles, splits, BLOCK_C, BLOCK_S, BLOCK_P, ACC)
    n = elements_before(tiles, S, BLOCK_S)
    finish_statistics(
        mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, old_mean, old_var, mean, low, m2, n.to(ACC), c0, C,
        eps, eps_low, momentum, momentum_low, BLOCK_C, ACC
    )  # fmt: skip
    return mean, low, m2, n


@triton.jit(noinline=True)  # of one program in many: its registers are not to weigh on the others
def store_statistics(
    mean_ptr,
    rstd_ptr,
    running_mean_ptr,
    running_var_ptr,
    partials_ptr,
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
    BLOCK_S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    merge_statistics(
        mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, partials_ptr, c0, C, S, tiles, splits,
        eps, eps_low, momentum, momentum_low, BLOCK_C, BLOCK_S, BLOCK_P, ACC
    )  # fmt: skip


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
