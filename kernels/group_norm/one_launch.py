"""Group norm in one launch each way: a program has whole groups of one image; the formulas are those of launch.py.

It sweeps them twice, the second time backwards so that it meets the cache.
"""

import triton
import triton.language as tl

from normlib.kernels.batch_norm.gradients import sums_of_tiles
from normlib.kernels.batch_norm.output import normalize_tiles, scale_of, shift_of
from normlib.kernels.batch_norm.statistics import any_in_doubt, moments_of_tiles, moments_tile_by_tile
from normlib.kernels.group_norm.rows import (
    BATCH,
    finish_group_statistics,
    group_gradient_of_tiles,
    group_statistics,
    image_offset,
    merge_rows,
    over_rows,
    place,
    sum_rows,
    weight_of,
)
from normlib.kernels.numerics import accumulator, blocks, divide, store


@triton.jit(do_not_specialize=BATCH)
def _group_norm_forward_kernel(
    y_ptr,
    mean_ptr,  # (2, M): mean, low
    rstd_ptr,  # (M,)
    var_ptr,  # (M,), or None where nobody asks
    x_ptr,
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    M,  # groups of all images
    C,
    S,
    per_group,  # channels
    eps,
    eps_low,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
    EVICT: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    image, c0, end = place(C, per_group, ROWS, BLOCK_C)
    offset = image_offset(image, C, S, LAST, ALIGN)
    tiles = blocks(S, BLOCK_S)
    channels = C if LAST else end  # channels-last it is a stride, and ends the last group too
    at = x_ptr + offset
    mean, low, m2 = moments_of_tiles(at, 0, tiles, c0, channels, S, False, LAST, ALIGN, BLOCK_C, BLOCK_S, STAGES, ACC)
    if any_in_doubt(m2):
        doubt = m2 != m2
        other_mean, other_low, other_m2 = moments_tile_by_tile(
            at, 0, tiles, c0, channels, S, False, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC
        )
        mean, low = tl.where(doubt, other_mean, mean), tl.where(doubt, other_low, low)
        m2 = tl.where(doubt, other_m2, m2)
    mean, low, m2 = merge_rows(mean, low, m2, c0, end, S, per_group, ROWS, BLOCK_C, ACC)
    group = c0 // per_group + tl.arange(0, BLOCK_C // ROWS)[:, None]
    mask = group < end // per_group
    group += image * (C // per_group)
    rstd = finish_group_statistics(
        mean_ptr, rstd_ptr, var_ptr, mean, low, m2, group, mask, M, S, per_group, eps, eps_low, ACC
    )
    mean, low, rstd = over_rows(mean, ROWS, BLOCK_C), over_rows(low, ROWS, BLOCK_C), over_rows(rstd, ROWS, BLOCK_C)
    scale = scale_of(rstd, weight_ptr, c0, end, BLOCK_C, ACC)
    shift = shift_of(bias_ptr, low, scale, c0, end, BLOCK_C, ACC)
    normalize_tiles(
        y_ptr + offset, None, x_ptr + offset, None, mean, scale, shift, 0, tiles, c0, channels, S,
        False, False, LAST, ALIGN, BLOCK_C, BLOCK_S, STAGES, ACC, EVICT
    )  # fmt: skip


@triton.jit(do_not_specialize=BATCH)
def _group_norm_backward_kernel(
    dx_ptr,
    partials_ptr,  # (2, N, C): sum(dy x_hat), sum(dy) of each image; or None
    dy_ptr,
    x_ptr,
    mean_ptr,  # (2, M): mean, low
    rstd_ptr,  # (M,)
    weight_ptr,  # (C,) or None
    M,
    N,
    C,
    S,
    per_group,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
    EVICT: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    image, c0, end = place(C, per_group, ROWS, BLOCK_C)
    offset = image_offset(image, C, S, LAST, ALIGN)
    tiles = blocks(S, BLOCK_S)
    channels = C if LAST else end
    mean, low, rstd = group_statistics(mean_ptr, rstd_ptr, image, c0, end, C, M, per_group, BLOCK_C, ACC)
    dw, db = sums_of_tiles(
        None, None, dy_ptr + offset, None, x_ptr + offset, mean, low, rstd, rstd, rstd, 0, tiles, c0, channels, S,
        True, False, False, LAST, ALIGN, BLOCK_C, BLOCK_S, STAGES, ACC
    )  # fmt: skip
    if partials_ptr is not None:
        c = c0 + tl.arange(0, BLOCK_C)[:, None]
        out = partials_ptr + image * C + c
        store(out, dw, c < end)
        store(out + tl.cast(N, tl.int64) * C, db, c < end)
    weight = weight_of(weight_ptr, rstd, c0, end, BLOCK_C, ACC)
    c1 = sum_rows(weight * dw, ROWS, BLOCK_C)
    c2 = sum_rows(weight * db, ROWS, BLOCK_C)
    n = (tl.cast(S, tl.int64) * per_group).to(ACC)
    group_gradient_of_tiles(
        dx_ptr + offset, dy_ptr + offset, x_ptr + offset, mean, low, rstd, weight, divide(c1, n), divide(c2, n),
        0, tiles, c0, channels, S, LAST, ALIGN, BLOCK_C, BLOCK_S, STAGES, ACC, EVICT
    )  # fmt: skip
