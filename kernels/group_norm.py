"""Group normalization of (N, C, *), contiguous or channels-last; instance norm is that with a channel a group.

Forward (Wu and He 2018, equations 1 and 2), over the n = C / G * prod(*) elements of each of an image's G groups:

    mean  = sum(x) / n              var = sum((x - mean)^2) / n              rstd = 1 / sqrt(var + eps)
    x_hat = (x - mean) rstd         y   = x_hat weight + bias, which each channel has its own of

Backward, with a channel's sums over its positions in one image, and c1, c2 over a group's channels:

    sum(dy x_hat), sum(dy)          c1 = sum(weight sum(dy x_hat)) / n       c2 = sum(weight sum(dy)) / n
    dx = rstd (weight dy - x_hat c1 - c2)
    dw = sum over images of sum(dy x_hat)          db = sum over images of sum(dy)

An image is swept as batch norm's channels are (batch_norm_tiles.py), a row of a tile each, and what is a channel's
becomes a group's by merging rows. Two plans (plan.py):

one launch    a program has all channels of a group, or of several groups, and sweeps them twice, the second time
              backwards so that it meets the cache. Backward leaves a row of sums an image, which are then added.
streaming     few large groups, and channels-last all that are no power of two: an image's channels are split over
              programs, which leave partial moments (or sums) of each; a merge over a group's channels and splits in a
              fixed order; one sweep that applies the result.

Units of one activation moved: forward 3, backward 5, and 2 and 3 where the second sweep finds the first one's in cache.
Saved for backward: x, the mean as a pair of floats, rstd.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from normlib.kernels import plan as plans
from normlib.kernels.batch_norm_gradients import sums_of_tiles
from normlib.kernels.batch_norm_output import normalize_tiles, scale_of, shift_of
from normlib.kernels.batch_norm_statistics import moments_of_tiles
from normlib.kernels.batch_norm_tiles import store_planes
from normlib.kernels.device import device_of, on
from normlib.kernels.group_norm_rows import (
    finish_group_statistics,
    group_gradient_of_tiles,
    group_statistics,
    image_offset,
    merge_parts,
    merge_rows,
    over_rows,
    part_offset,
    place,
    sum_rows,
    weight_of,
)
from normlib.kernels.layouts import dense, like
from normlib.kernels.numerics import accumulator, blocks, divide, even_share, float_pair, load, statistics_dtype, store
from normlib.kernels.plan import Device
from normlib.kernels.reduction import accurate_sum, sum_partials

# Arguments that follow the batch size: no compilation of their own for a 1 or a multiple of 16.
BATCH = ("M", "splits", "N")

# --------------------------------------------------------------------------------------------------------- one launch


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
    EVICT: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    image, c0, end = place(C, per_group, ROWS, BLOCK_C)
    offset = image_offset(image, C, S, LAST, ALIGN)
    tiles = blocks(S, BLOCK_S)
    channels = C if LAST else end  # channels-last it is a stride, and ends the last group too
    mean, low, m2 = moments_of_tiles(
        x_ptr + offset, 0, tiles, c0, channels, S, False, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC
    )
    mean, low, m2 = merge_rows(mean, low, m2, c0, end, S, per_group, ROWS, BLOCK_C, ACC)
    group = c0 // per_group + tl.arange(0, BLOCK_C // ROWS)[:, None]
    mask = group < end // per_group
    group += image * (C // per_group)
    rstd = finish_group_statistics(
        mean_ptr, rstd_ptr, var_ptr, mean, low, m2, group, mask, M, S, per_group, eps, eps_low, ACC
    )
    mean, low, rstd = over_rows(mean, ROWS, BLOCK_C), over_rows(low, ROWS, BLOCK_C), over_rows(rstd, ROWS, BLOCK_C)
    scale = scale_of(rstd, weight_ptr, c0, end, BLOCK_C, ACC)
    shift = shift_of(bias_ptr, c0, end, BLOCK_C, ACC)
    normalize_tiles(
        y_ptr + offset, None, x_ptr + offset, None, mean, low, scale, shift, 0, tiles, c0, channels, S,
        False, False, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC, EVICT
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
        True, False, False, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC
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
        0, tiles, c0, channels, S, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC, EVICT
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- streaming
#
# A program has a block of channels, whatever their groups are, and a split of their tiles. Its results are part
# `image * splits + split` of the partials.


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
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    image, c0, _ = place(C, 1, 1, BLOCK_C)
    split = tl.program_id(1)
    first, last = even_share(split, splits, blocks(S, BLOCK_S))
    offset = image_offset(image, C, S, LAST, ALIGN)
    mean, low, m2 = moments_of_tiles(x_ptr + offset, first, last, c0, C, S, False, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC)
    store_planes(partials_ptr, image * splits + split, tl.cast(N, tl.int64) * splits, c0, C, mean, low, m2, BLOCK_C)


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
    EVICT: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    image, c0, end = place(C, 1, 1, BLOCK_C)
    first, last = even_share(splits - 1 - tl.program_id(1), splits, blocks(S, BLOCK_S))
    offset = image_offset(image, C, S, LAST, ALIGN)
    mean, low, rstd = group_statistics(mean_ptr, rstd_ptr, image, c0, end, C, M, per_group, BLOCK_C, ACC)
    scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
    shift = shift_of(bias_ptr, c0, C, BLOCK_C, ACC)
    normalize_tiles(
        y_ptr + offset, None, x_ptr + offset, None, mean, low, scale, shift, first, last, c0, C, S,
        False, False, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC, EVICT
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
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    image, c0, end = place(C, 1, 1, BLOCK_C)
    split = tl.program_id(1)
    first, last = even_share(split, splits, blocks(S, BLOCK_S))
    offset = image_offset(image, C, S, LAST, ALIGN)
    mean, low, rstd = group_statistics(mean_ptr, rstd_ptr, image, c0, end, C, M, per_group, BLOCK_C, ACC)
    dw, db = sums_of_tiles(
        None, None, dy_ptr + offset, None, x_ptr + offset, mean, low, rstd, rstd, rstd, first, last, c0, C, S,
        True, False, False, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC
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
    EVICT: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    image, c0, end = place(C, 1, 1, BLOCK_C)
    first, last = even_share(splits - 1 - tl.program_id(1), splits, blocks(S, BLOCK_S))
    offset = image_offset(image, C, S, LAST, ALIGN)
    mean, low, rstd = group_statistics(mean_ptr, rstd_ptr, image, c0, end, C, M, per_group, BLOCK_C, ACC)
    c1, c2, _ = group_statistics(coefficients_ptr, None, image, c0, end, C, M, per_group, BLOCK_C, ACC)
    weight = weight_of(weight_ptr, rstd, c0, end, BLOCK_C, ACC)
    group_gradient_of_tiles(
        dx_ptr + offset, dy_ptr + offset, x_ptr + offset, mean, low, rstd, weight, c1, c2, first, last, c0, C, S,
        LAST, ALIGN, BLOCK_C, BLOCK_S, ACC, EVICT
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- running statistics


@triton.jit(do_not_specialize=("N",))
def _instance_norm_running_kernel(
    running_mean_ptr,  # (C,), updated in place
    running_var_ptr,  # (C,), updated in place
    mean_ptr,  # (2, N * C): mean, low
    var_ptr,  # (N * C,)
    N,
    C,
    S,
    momentum,
    momentum_low,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Moves by momentum towards the mean over images of each channel's mean and unbiased variance, in float64."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    plane = tl.cast(N, tl.int64) * C
    means = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    variances = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    for start in range(0, N, BLOCK_N):
        image = start + tl.arange(0, BLOCK_N)[:, None]
        mask, at = (image < N) & (c < C), image.to(tl.int64) * C + c
        means += load(mean_ptr + at, mask, tl.float64) + load(mean_ptr + plane + at, mask, tl.float64)
        variances += load(var_ptr + at, mask, tl.float64)
    m = tl.zeros([1, BLOCK_C], tl.float64) + momentum + momentum_low
    n = tl.zeros([1, BLOCK_C], tl.float64) + N
    mean = tl.sum(means, 0, keep_dims=True) / n
    var = tl.sum(variances, 0, keep_dims=True) / n * (tl.cast(S, tl.float64) / (tl.cast(S, tl.float64) - 1.0))
    old_mean, old_var = load(running_mean_ptr + c, c < C, tl.float64), load(running_var_ptr + c, c < C, tl.float64)
    store(running_mean_ptr + c, old_mean * (1.0 - m) + mean * m, c < C)
    store(running_var_ptr + c, old_var * (1.0 - m) + var * m, c < C)


# ---------------------------------------------------------------------------------------------------------- launchers


def _tiling(plan: plans.GroupNormPlan) -> dict[str, object]:
    return {
        "LAST": plan.channels_last,
        "ALIGN": plan.align,
        "BLOCK_C": plan.block_c,
        "BLOCK_S": plan.block_s,
        **plan.options,
    }


def group_norm_forward(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    device: Device | None = None,
    var: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean (2, N * groups), rstd (N * groups,)) of x (N, C, *); the biased variances go to var, if given."""
    x, last = dense(x)
    device = device or device_of(x)
    plan = plans.group_norm(tuple(x.shape), groups, last, x.element_size(), device)
    y = torch.empty_like(x)
    mean = torch.empty((2, plan.statistics), dtype=statistics_dtype(x), device=x.device)
    rstd = torch.empty(plan.statistics, dtype=mean.dtype, device=x.device)
    if x.numel() == 0:
        return y, mean.zero_(), rstd.zero_()
    saved, sizes = (mean, rstd, var), (plan.channels, plan.positions, plan.per_group)
    grid = (plan.groups, plan.splits)
    with on(x):
        if plan.rows:
            _group_norm_forward_kernel[grid](
                *(y, *saved, x, weight, bias, plan.statistics, *sizes, *float_pair(eps)),
                ROWS=plan.rows,
                EVICT=plan.evict,
                **_tiling(plan),
            )
            return y, mean, rstd
        partials = torch.empty((3, plan.parts, plan.channels), dtype=mean.dtype, device=x.device)
        _group_norm_stats_kernel[grid](partials, x, plan.batch, *sizes[:2], plan.splits, **_tiling(plan))
        _group_norm_merge_kernel[(plan.merges,)](
            *(*saved, partials, plan.statistics, plan.batch, *sizes, plan.splits, *float_pair(eps), plan.block_s),
            BLOCK_G=plans.MERGED_GROUPS,
            BLOCK_P=plans.MERGED_PARTS,
            **plan.options,
        )
        _group_norm_normalize_kernel[grid](
            *(y, x, mean, rstd, weight, bias, plan.statistics, *sizes, plan.splits),
            EVICT=plan.evict,
            **_tiling(plan),
        )
    return y, mean, rstd


def group_norm_backward(
    dy: Tensor,
    x: Tensor,
    groups: int,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    dw_dtype: torch.dtype | None,
    db_dtype: torch.dtype | None,
    need_dx: bool,
    device: Device | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dw, db); dw and db (C,) in the given dtypes, None where the dtype is None, dx None unless needed.

    mean and rstd are as saved by the forward pass.
    """
    x, last = dense(x)
    dy = like(x, dy)
    device = device or device_of(x)
    plan = plans.group_norm(tuple(x.shape), groups, last, x.element_size(), device)
    dx = torch.empty_like(x) if need_dx else None
    dw, db = (None if t is None else torch.empty(plan.channels, dtype=t, device=x.device) for t in (dw_dtype, db_dtype))
    if x.numel() == 0:
        return dx, *(None if t is None else t.zero_() for t in (dw, db))
    wanted = dw is not None or db is not None
    alone = bool(plan.rows) and need_dx
    partials = None
    if wanted or not alone:
        partials = torch.empty((2, plan.parts, plan.channels), dtype=rstd.dtype, device=x.device)
    sizes, grid = (plan.channels, plan.positions, plan.per_group), (plan.groups, plan.splits)
    with on(x):
        if alone:
            _group_norm_backward_kernel[grid](
                *(dx, partials, dy, x, mean, rstd, weight, plan.statistics, plan.batch, *sizes),
                ROWS=plan.rows,
                EVICT=plan.evict,
                **_tiling(plan),
            )
        elif need_dx or wanted:
            _group_norm_reduce_kernel[grid](
                *(partials, dy, x, mean, rstd, plan.statistics, plan.batch, *sizes, plan.splits), **_tiling(plan)
            )
        if wanted:
            kept = [(t, i) for i, t in enumerate((dw, db)) if t is not None]
            sums = partials[kept[0][1] : kept[-1][1] + 1]
            sum_partials(sums, tuple(t for t, _ in kept), plans.merge(plan.parts, plan.channels, device))
        if need_dx and not alone:
            coefficients = torch.empty((2, plan.statistics), dtype=rstd.dtype, device=x.device)
            _group_norm_coefficients_kernel[(plan.merges,)](
                *(coefficients, partials, weight, plan.statistics, plan.batch, *sizes, plan.splits),
                BLOCK_G=plans.MERGED_GROUPS,
                BLOCK_P=plans.MERGED_PARTS,
                **plan.options,
            )
            _group_norm_input_gradient_kernel[grid](
                *(dx, dy, x, mean, rstd, coefficients, weight, plan.statistics, *sizes, plan.splits),
                EVICT=plan.evict,
                **_tiling(plan),
            )
    return dx, dw, db


def instance_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    device: Device | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Group norm of x (N, C, *) with a channel a group; running buffers (C,), if given, are updated in place."""
    images, channels = x.shape[:2]
    device = device or device_of(x)
    if running_mean is None or running_var is None or x.numel() == 0:
        return group_norm_forward(x, channels, weight, bias, eps, device)
    var = torch.empty(images * channels, dtype=statistics_dtype(x), device=x.device)
    y, mean, rstd = group_norm_forward(x, channels, weight, bias, eps, device, var)
    merge = plans.merge(images, channels, device)
    with on(x):
        _instance_norm_running_kernel[(plans.cdiv(channels, merge.block_n),)](
            *(running_mean, running_var, mean, var, images, channels, x[0, 0].numel(), *float_pair(momentum)),
            BLOCK_N=merge.block_p,
            BLOCK_C=merge.block_n,
            **merge.options,
        )
    return y, mean, rstd
