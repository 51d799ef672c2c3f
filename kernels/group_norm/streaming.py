"""Group norm where an image's channels are split over programs; the formulas are those of launch.py.

A program has a block of channels, whatever their groups are, and a split of their tiles. Its results are part
`image * splits + split` of the partials, which are merged over a group's channels and splits in a fixed order.
"""

import triton
import triton.language as tl

from normlib.kernels.batch_norm.gradients import sums_of_tiles
from normlib.kernels.batch_norm.output import normalize_tiles, scale_of, shift_of
from normlib.kernels.batch_norm.statistics import store_moments
from normlib.kernels.batch_norm.tiles import store_planes
from normlib.kernels.group_norm.rows import (
    BATCH,
    finish_group_statistics,
    group_gradient_of_tiles,
    group_pair,
    group_statistics,
    image_offset,
    merge_parts,
    part_offset,
    place,
    weight_of,
)
from normlib.kernels.numerics import accumulator, blocks, divide, even_share, load, store
from normlib.kernels.reduction import accurate_sum


@triton.jit(do_not_specialize=BATCH)
def _group_norm_stats_kernel(
    partials_ptr,  # (3, N * splits, C): mean, low, M2 of each channel in each part
    x_ptr,
    N,
    C,
    S,
    splits,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    image, c0, _ = place(C, 1, 1, BLOCK_C)
    split = tl.program_id(1)
    first, last = even_share(split, splits, blocks(S, BLOCK_S))
    offset = image_offset(image, C, S, LAST, ALIGN)
    part, parts = image * splits + split, tl.cast(N, tl.int64) * splits
    store_moments(
        partials_ptr, part, parts, x_ptr + offset, first, last, c0, C, S, False, LAST, ALIGN, BLOCK_C, BLOCK_S, STAGES,
        ACC
    )  # fmt: skip


@triton.jit(do_not_specialize=BATCH)
def _group_norm_merge_kernel(
    mean_ptr,  # (2, M): mean, low
    rstd_ptr,  # (M,)
    var_ptr,  # (M,) or None
    partials_ptr,  # (3, N * splits, C)
    M,
    N,
    C,
    S,
    per_group,
    splits,
    eps,
    eps_low,
    BLOCK_S,
    BLOCK_G: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(partials_ptr.dtype)
    group = tl.program_id(0).to(tl.int64) * BLOCK_G + tl.arange(0, BLOCK_G)[:, None]
    mean, low, m2 = merge_parts(partials_ptr, group, M, N, C, S, per_group, splits, BLOCK_S, BLOCK_P, ACC)
    finish_group_statistics(
        mean_ptr, rstd_ptr, var_ptr, mean, low, m2, group, group < M, M, S, per_group, eps, eps_low, ACC
    )


@triton.jit(do_not_specialize=BATCH)
def _group_norm_normalize_kernel(
    y_ptr,
    x_ptr,
    mean_ptr,  # (2, M): mean, low
    rstd_ptr,  # (M,)
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    M,
    C,
    S,
    per_group,
    splits,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
    EVICT: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    image, c0, end = place(C, 1, 1, BLOCK_C)
    first, last = even_share(splits - 1 - tl.program_id(1), splits, blocks(S, BLOCK_S))
    offset = image_offset(image, C, S, LAST, ALIGN)
    mean, low, rstd = group_statistics(mean_ptr, rstd_ptr, image, c0, end, C, M, per_group, BLOCK_C, ACC)
    scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
    shift = shift_of(bias_ptr, low, scale, c0, C, BLOCK_C, ACC)
    normalize_tiles(
        y_ptr + offset, None, x_ptr + offset, None, mean, scale, shift, first, last, c0, C, S,
        False, False, LAST, ALIGN, BLOCK_C, BLOCK_S, STAGES, ACC, EVICT
    )  # fmt: skip


@triton.jit(do_not_specialize=BATCH)
def _group_norm_reduce_kernel(
    partials_ptr,  # (2, N * splits, C): sum(dy x_hat), sum(dy) of each channel in each part
    dy_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    M,
    N,
    C,
    S,
    per_group,
    splits,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    image, c0, end = place(C, 1, 1, BLOCK_C)
    split = tl.program_id(1)
    first, last = even_share(split, splits, blocks(S, BLOCK_S))
    offset = image_offset(image, C, S, LAST, ALIGN)
    mean, low, rstd = group_statistics(mean_ptr, rstd_ptr, image, c0, end, C, M, per_group, BLOCK_C, ACC)
    dw, db = sums_of_tiles(
        None, None, dy_ptr + offset, None, x_ptr + offset, mean, low, rstd, rstd, rstd, first, last, c0, C, S,
        True, False, False, LAST, ALIGN, BLOCK_C, BLOCK_S, STAGES, ACC
    )  # fmt: skip
    store_planes(partials_ptr, image * splits + split, tl.cast(N, tl.int64) * splits, c0, C, dw, db, None, BLOCK_C)


@triton.jit(do_not_specialize=BATCH)
def _group_norm_coefficients_kernel(
    coefficients_ptr,  # (2, M): c1, c2
    partials_ptr,  # (2, N * splits, C)
    weight_ptr,  # (C,) or None
    M,
    N,
    C,
    S,
    per_group,
    splits,
    BLOCK_G: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(partials_ptr.dtype)
    group = tl.program_id(0).to(tl.int64) * BLOCK_G + tl.arange(0, BLOCK_G)[:, None]
    plane = tl.cast(N, tl.int64) * splits * C
    c1 = tl.zeros([BLOCK_G, BLOCK_P], ACC)
    c2 = tl.zeros([BLOCK_G, BLOCK_P], ACC)
    for start in range(0, splits * per_group, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)[None, :]
        mask = (part < splits * per_group) & (group < M)
        source = partials_ptr + part_offset(part, group, C, per_group, splits)
        dw, db = load(source, mask, ACC), load(source + plane, mask, ACC)
        if weight_ptr is not None:
            weight = load(weight_ptr + group % (C // per_group) * per_group + part % per_group, mask, ACC)
            dw *= weight
            db *= weight
        c1 += dw
        c2 += db
    n = (tl.cast(S, tl.int64) * per_group).to(ACC)
    store(coefficients_ptr + group, divide(accurate_sum(c1, 1), n), group < M)
    store(coefficients_ptr + tl.cast(M, tl.int64) + group, divide(accurate_sum(c2, 1), n), group < M)


@triton.jit(do_not_specialize=BATCH)
def _group_norm_input_gradient_kernel(
    dx_ptr,
    dy_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    coefficients_ptr,  # (2, M): c1, c2
    weight_ptr,
    M,
    C,
    S,
    per_group,
    splits,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
    EVICT: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    image, c0, end = place(C, 1, 1, BLOCK_C)
    first, last = even_share(splits - 1 - tl.program_id(1), splits, blocks(S, BLOCK_S))
    offset = image_offset(image, C, S, LAST, ALIGN)
    mean, low, rstd = group_statistics(mean_ptr, rstd_ptr, image, c0, end, C, M, per_group, BLOCK_C, ACC)
    c1, c2 = group_pair(coefficients_ptr, image, c0, end, C, M, per_group, BLOCK_C, ACC)
    weight = weight_of(weight_ptr, rstd, c0, end, BLOCK_C, ACC)
    group_gradient_of_tiles(
        dx_ptr + offset, dy_ptr + offset, x_ptr + offset, mean, low, rstd, weight, c1, c2, first, last, c0, C, S,
        LAST, ALIGN, BLOCK_C, BLOCK_S, STAGES, ACC, EVICT
    )  # fmt: skip
