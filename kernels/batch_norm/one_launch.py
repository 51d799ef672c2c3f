"""Batch norm's passes in one launch, whose splits meet at a barrier; the formulas are those of launch.py.

The grid is (windows, splits), all of it resident at once: a window takes the channel groups `window`, `window +
windows`, ... one after another, all its splits at the same one. `lag` is how many groups the second sweep is behind the
first: with as many as there are windows, nobody waits at the barrier of a group before having swept its next one.
"""

import triton
import triton.language as tl

from normlib.kernels.barrier import arrive, leave, wait
from normlib.kernels.batch_norm.gradients import add_splits, input_gradient_of_tiles, sums_of_tiles
from normlib.kernels.batch_norm.output import normalize_tiles, scale_of, shift_of
from normlib.kernels.batch_norm.statistics import finish_statistics, merge_splits, moments_of_tiles, statistics
from normlib.kernels.batch_norm.tiles import BATCH, elements_before, store_planes
from normlib.kernels.numerics import accumulator, blocks, even_share, store


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_forward_kernel(
    y_ptr,
    signs_ptr,  # one bit an element, for backward, or None
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,  # (C,)
    running_mean_ptr,  # (C,), updated in place, or None
    running_var_ptr,  # (C,), updated in place, or None
    partials_ptr,  # (3, splits, C), or None where there is one split
    arrived_ptr,  # (2, groups) zeros: arrived, left; or None
    x_ptr,
    residual_ptr,  # like x, or None
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    C,
    S,
    tiles,
    splits,
    lag,
    eps,
    eps_low,
    momentum,
    momentum_low,
    RELU: tl.constexpr,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    EVICT: tl.constexpr = "",  # of what the last sweep moves
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    window, split, windows = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    groups = blocks(C, BLOCK_C)
    n = elements_before(tiles, S, BLOCK_S).to(ACC)
    first, last = even_share(split, splits, tiles)
    for group in range(window, groups + lag, windows):
        c0 = group * BLOCK_C
        if group < groups:
            mean, low, m2 = moments_of_tiles(x_ptr, first, last, c0, C, S, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC)
            if partials_ptr is not None:
                store_planes(partials_ptr, split, splits, c0, C, mean, low, m2, BLOCK_C)
                arrive(arrived_ptr + group)
        else:
            mean = tl.zeros([BLOCK_C, 1], ACC)
            low = tl.zeros([BLOCK_C, 1], ACC)
            m2 = tl.zeros([BLOCK_C, 1], ACC)
        late = group - lag
        if late >= 0:
            c0 = late * BLOCK_C
            if partials_ptr is not None:
                wait(arrived_ptr + late, splits)
                leave(arrived_ptr + groups + late, splits, arrived_ptr + late)
                mean, low, m2 = merge_splits(partials_ptr, c0, C, S, tiles, splits, BLOCK_C, BLOCK_S, BLOCK_P, ACC)
            rstd = finish_statistics(
                mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, mean, low, m2, n, split == 0, c0, C, eps,
                eps_low, momentum, momentum_low, BLOCK_C, ACC
            )  # fmt: skip
            scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
            shift = shift_of(bias_ptr, c0, C, BLOCK_C, ACC)
            normalize_tiles(
                y_ptr, signs_ptr, x_ptr, residual_ptr, mean, low, scale, shift, first, last, c0, C, S,
                RELU, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC, EVICT
            )  # fmt: skip


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_backward_kernel(
    dx_ptr,
    dz_ptr,  # the residual's gradient, or None
    dw_ptr,  # (C,): sum(dz x_hat), in the statistics' dtype
    db_ptr,  # (C,): sum(dz)
    partials_ptr,  # (2, splits, C), or None where there is one split
    arrived_ptr,  # (2, groups) zeros: arrived, left; or None
    dy_ptr,
    signs_ptr,  # of forward with a residual, or None
    x_ptr,
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    C,
    S,
    tiles,
    splits,
    lag,
    RELU: tl.constexpr,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    EVICT: tl.constexpr = "",  # of what the last sweep moves
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    window, split, windows = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    groups = blocks(C, BLOCK_C)
    n = elements_before(tiles, S, BLOCK_S).to(ACC)
    first, last = even_share(split, splits, tiles)
    for group in range(window, groups + lag, windows):
        c0 = group * BLOCK_C
        if group < groups:
            mean, low, rstd = statistics(mean_ptr, rstd_ptr, 0.0, 0.0, c0, C, False, BLOCK_C, ACC)
            scale, shift = rstd, rstd  # which only a ReLU asks for here
            if RELU:
                scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
                shift = shift_of(bias_ptr, c0, C, BLOCK_C, ACC)
            dw, db = sums_of_tiles(
                None, None, dy_ptr, signs_ptr, x_ptr, mean, low, rstd, scale, shift, first, last, c0, C, S,
                True, RELU, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC
            )  # fmt: skip
            if partials_ptr is not None:
                store_planes(partials_ptr, split, splits, c0, C, dw, db, None, BLOCK_C)
                arrive(arrived_ptr + group)
        else:
            dw = tl.zeros([BLOCK_C, 1], ACC)
            db = tl.zeros([BLOCK_C, 1], ACC)
        late = group - lag
        if late >= 0:
            c0 = late * BLOCK_C
            if partials_ptr is not None:
                wait(arrived_ptr + late, splits)
                leave(arrived_ptr + groups + late, splits, arrived_ptr + late)
                dw = add_splits(partials_ptr, c0, C, splits, BLOCK_C, BLOCK_P, ACC)
                plane = tl.cast(splits, tl.int64) * C
                db = add_splits(partials_ptr + plane, c0, C, splits, BLOCK_C, BLOCK_P, ACC)
            c = c0 + tl.arange(0, BLOCK_C)[:, None]
            store(dw_ptr + c, dw, (c < C) & (split == 0))
            store(db_ptr + c, db, (c < C) & (split == 0))
            mean, low, rstd = statistics(mean_ptr, rstd_ptr, 0.0, 0.0, c0, C, False, BLOCK_C, ACC)
            scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
            shift = shift_of(bias_ptr, c0, C, BLOCK_C, ACC)
            input_gradient_of_tiles(
                dx_ptr, dz_ptr, dy_ptr, signs_ptr, x_ptr, mean, low, rstd, scale, shift, dw, db, n,
                first, last, c0, C, S, RELU, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC, EVICT
            )  # fmt: skip
