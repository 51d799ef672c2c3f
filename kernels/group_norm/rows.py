"""Device functions of group norm beside batch norm's: the places of images and groups, and the merge of rows.

A row of a tile is a channel of one image. A program of the one-launch plan has BLOCK_C rows of whole groups, ROWS rows
each: a power of two, of which a group of another size, alone in its tile, fills the first ones.
The symbols are those of launch.py.
"""

import triton
import triton.language as tl

from normlib.kernels.batch_norm.tiles import (
    channel_values,
    elements_before,
    mask_of_tile,
    offsets_in_tile,
    previous_tile,
    start_of_tile,
)
from normlib.kernels.numerics import blocks, divide, even_share, load, store
from normlib.kernels.reduction import accurate_sum, merge_all_moments, merge_moments, rstd_of

# Arguments that follow the batch size: no compilation of their own for a 1 or a multiple of 16.
BATCH = ("M", "splits", "N")


@triton.jit
def place(C, per_group, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Returns (image, first channel, end of the channels) of this program, in 64 bits."""
    step = BLOCK_C // ROWS * per_group
    count = blocks(C, step)
    c0 = (tl.program_id(0) % count).to(tl.int64) * step
    return (tl.program_id(0) // count).to(tl.int64), c0, tl.minimum(c0 + step, C)


@triton.jit
def image_offset(image, C, S, LAST: tl.constexpr, ALIGN: tl.constexpr):
    """Returns the number of elements before an image, in a form that the compiler sees to be a multiple of ALIGN."""
    if LAST:
        C = C // ALIGN * ALIGN
    else:
        S = S // ALIGN * ALIGN
    return image * C * S


# ------------------------------------------------------------------------------------------------------ rows, groups


@triton.jit
def over_rows(value, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Returns a column of groups' values as a column of their rows' values."""
    if ROWS == 1:
        return value
    else:
        return tl.reshape(tl.broadcast_to(value, [BLOCK_C // ROWS, ROWS]), [BLOCK_C, 1])


@triton.jit
def sum_rows(value, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Returns the sum over a group's rows, in each of them."""
    if ROWS == 1:
        return value
    else:
        groups = tl.reshape(value, [BLOCK_C // ROWS, ROWS])
        return over_rows(accurate_sum(groups, 1), ROWS, BLOCK_C)


@triton.jit
def merge_rows(mean, low, m2, c0, end, S, per_group, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr):
    """Returns (mean, low, M2) of each group, a column, from those of its rows, S elements each."""
    if ROWS == 1:
        return mean, low, m2
    else:
        row = tl.arange(0, ROWS)[None, :]
        mask = row < per_group
        counts = tl.where(mask, S, 0).to(ACC)
        n = (tl.cast(S, tl.int64) * per_group).to(ACC)
        means = tl.reshape(mean, [BLOCK_C // ROWS, ROWS])
        lows = tl.reshape(low, [BLOCK_C // ROWS, ROWS])
        m2s = tl.reshape(m2, [BLOCK_C // ROWS, ROWS])
        first = tl.sum(tl.where(row == 0, means, 0.0), 1, keep_dims=True)
        return merge_all_moments(counts, means, lows, m2s, mask, n, first, 1)


@triton.jit
def merge_parts(
    partials_ptr,  # (3, N * splits, C)
    group,
    M,
    N,
    C,
    S,
    per_group,
    splits,
    BLOCK_S,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    """Returns (mean, low, M2) of each of a column of groups, from the partials of its channels, in a fixed order."""
    p = tl.arange(0, BLOCK_P)[None, :]
    parts, tiles = splits * per_group, blocks(S, BLOCK_S)
    plane = tl.cast(N, tl.int64) * splits * C
    # Lane p takes parts p, p + BLOCK_P, ...; then the lanes are merged at once.
    count = tl.zeros([1, BLOCK_P], ACC)
    mean = tl.zeros([group.shape[0], BLOCK_P], ACC)
    low = tl.zeros([group.shape[0], BLOCK_P], ACC)
    m2 = tl.zeros([group.shape[0], BLOCK_P], ACC)
    for start in range(0, parts, BLOCK_P):
        part = start + p
        mask = (part < parts) & (group < M)
        first, last = even_share(part // per_group, splits, tiles)
        elements = elements_before(last, S, BLOCK_S) - elements_before(first, S, BLOCK_S)
        source = partials_ptr + part_offset(part, group, C, per_group, splits)
        count, mean, low, m2 = merge_moments(
            count,
            mean,
            low,
            m2,
            tl.where(part < parts, elements, 0).to(ACC),
            load(source, mask, ACC),
            load(source + plane, mask, ACC),
            load(source + 2 * plane, mask, ACC),
        )
    n = (tl.cast(S, tl.int64) * per_group).to(ACC)
    first_mean = tl.sum(tl.where(p == 0, mean, 0.0), 1, keep_dims=True)
    return merge_all_moments(count, mean, low, m2, p < parts, n, first_mean, 1)


@triton.jit
def part_offset(part, group, C, per_group, splits):
    """Returns the offset of a group's part, one channel in one split, in a plane (N * splits, C) of partials."""
    groups = C // per_group
    channel = group % groups * per_group + part % per_group
    return (group // groups * splits + part // per_group) * C + channel


# -------------------------------------------------------------------------------------------------------- statistics


@triton.jit
def finish_group_statistics(
    mean_ptr,  # (2, M): mean, low
    rstd_ptr,  # (M,)
    var_ptr,  # (M,) or None
    mean,
    low,
    m2,
    group,
    mask,
    M,
    S,
    per_group,
    eps,
    eps_low,
    ACC: tl.constexpr,
):
    """Returns rstd of these groups from the moments of all their elements, and stores what is kept."""
    var = divide(m2, (tl.cast(S, tl.int64) * per_group).to(ACC))
    rstd = rstd_of(var, eps, eps_low, ACC)
    store(mean_ptr + group, mean, mask)
    store(mean_ptr + tl.cast(M, tl.int64) + group, low, mask)
    store(rstd_ptr + group, rstd, mask)
    if var_ptr is not None:
        store(var_ptr + group, var, mask)
    return rstd


@triton.jit
def groups_of(image, c0, end, C, per_group, BLOCK_C: tl.constexpr):
    """Returns (each channel's group in all images, whether it is one of ours), as columns."""
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    return image * (C // per_group) + c // per_group, c < end


@triton.jit
def group_pair(
    pair_ptr,  # (2, M)
    image,
    c0,
    end,
    C,
    M,
    per_group,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """Returns the two values of each channel's group, as columns."""
    group, mask = groups_of(image, c0, end, C, per_group, BLOCK_C)
    return load(pair_ptr + group, mask, ACC), load(pair_ptr + tl.cast(M, tl.int64) + group, mask, ACC)


@triton.jit
def group_statistics(
    mean_ptr,  # (2, M): mean, low
    rstd_ptr,  # (M,)
    image,
    c0,
    end,
    C,
    M,
    per_group,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """Returns mean, low and rstd of each channel's group, as columns."""
    mean, low = group_pair(mean_ptr, image, c0, end, C, M, per_group, BLOCK_C, ACC)
    group, mask = groups_of(image, c0, end, C, per_group, BLOCK_C)
    return mean, low, load(rstd_ptr + group, mask, ACC)


@triton.jit
def weight_of(weight_ptr, like, c0, end, BLOCK_C: tl.constexpr, ACC: tl.constexpr):
    """Returns the channels' weights as a column, or ones."""
    if weight_ptr is not None:
        return channel_values(weight_ptr, c0, end, BLOCK_C, ACC)
    else:
        return tl.full([BLOCK_C, 1], 1.0, ACC)


# --------------------------------------------------------------------------------------------------------- gradient


@triton.jit
def group_gradient_of_tiles(
    dx_ptr,
    dy_ptr,
    x_ptr,
    mean,
    low,
    rstd,
    weight,
    c1,
    c2,
    first,
    last,
    c0,
    C,
    S,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
    EVICT: tl.constexpr,
):
    """Stores dx of tiles [first, last), the last one first."""
    slope = c1 * rstd
    offsets = offsets_in_tile(C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
    start, s0 = start_of_tile(last - 1, c0, C, S, LAST, ALIGN, BLOCK_S)
    for _ in tl.range(first, last, num_stages=STAGES):
        mask = mask_of_tile(s0, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        at = start + offsets
        dy = load(dy_ptr + at, mask, ACC, EVICT)
        x = load(x_ptr + at, mask, ACC, EVICT)
        dx = rstd * ((weight * dy - c2) - ((x - mean) - low) * slope)
        store(dx_ptr + at, dx, mask, EVICT)
        start, s0 = previous_tile(start, s0, C, S, LAST, ALIGN, BLOCK_S)
