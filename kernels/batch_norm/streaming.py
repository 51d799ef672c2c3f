"""Batch norm's two launches each way: partial results of each split and their merge, a sweep that applies the result.

Evaluation is the last of them forward, and the first backward. The formulas are those of launch.py.
"""

import triton
import triton.language as tl

from normlib.kernels.barrier import is_last
from normlib.kernels.batch_norm.gradients import input_gradient_of_tiles, store_sums, sums_of_tiles
from normlib.kernels.batch_norm.noise import load_noise
from normlib.kernels.batch_norm.output import normalize_tiles, scale_of, shift_of
from normlib.kernels.batch_norm.statistics import statistics, store_moments, store_statistics
from normlib.kernels.batch_norm.tiles import BATCH, channel_values, elements_before, store_planes
from normlib.kernels.numerics import accumulator, even_share


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_stats_kernel(
    mean_ptr,  # (2, C): mean, low; or None: then only partials are stored
    rstd_ptr,  # (C,)
    running_mean_ptr,  # (C,), updated in place, or None
    running_var_ptr,  # (C,), updated in place, or None
    partials_ptr,  # (3, splits, C): mean, low, M2 of each split
    arrived_ptr,  # (groups,) zeros, or None with mean_ptr
    x_ptr,
    C,
    S,
    tiles,
    splits,
    eps,
    eps_low,
    momentum,
    momentum_low,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_P: tl.constexpr = 1,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_C
    split = tl.program_id(1)
    first, last = even_share(split, splits, tiles)
    store_moments(
        partials_ptr, split, splits, x_ptr, first, last, c0, C, S, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, STAGES, ACC
    )
    if mean_ptr is not None:
        last_to_come = is_last(arrived_ptr + tl.program_id(0), splits)
        if last_to_come:
            store_statistics(
                mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, partials_ptr, c0, C, S, tiles, splits,
                eps, eps_low, momentum, momentum_low, BLOCK_C, BLOCK_S, BLOCK_P, ACC
            )  # fmt: skip


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_normalize_kernel(
    y_ptr,
    signs_ptr,  # one bit an element, for backward, or None
    x_ptr,
    residual_ptr,  # like x, or None
    mean_ptr,  # (2, C): mean, low; in evaluation running_mean (C,)
    rstd_ptr,  # (C,); in evaluation running_var
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    C,
    S,
    tiles,
    splits,
    eps,
    eps_low,
    EVAL: tl.constexpr,
    RELU: tl.constexpr,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
    EVICT: tl.constexpr = "",  # of what the last sweep moves
    P: tl.constexpr = None,  # in evaluation, of lp.py: rstd is of a running norm of this order
    STD: tl.constexpr = False,  # whether evaluation's is running_std
    noise_ptr=None,  # (4, C), see noisy.py, or None
    seed_ptr=None,  # (), with noise
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_C
    first, last = even_share(splits - 1 - tl.program_id(1), splits, tiles)
    mean, low, rstd = statistics(mean_ptr, rstd_ptr, eps, eps_low, c0, C, EVAL, BLOCK_C, ACC, P, STD)
    scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
    shift = shift_of(bias_ptr, low, scale, c0, C, BLOCK_C, ACC)
    normalize_tiles(
        y_ptr, signs_ptr, x_ptr, residual_ptr, mean, scale, shift, first, last, c0, C, S,
        RELU, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, STAGES, ACC, EVICT, noise_ptr, seed_ptr
    )  # fmt: skip


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_reduce_kernel(
    dw_ptr,  # (C,): sum(dz x_hat), in the statistics' dtype; or None: then only partials are stored
    db_ptr,  # (C,): sum(dz)
    partials_ptr,  # (2, splits, C): sum(dz x_hat), sum(dz) of each split; or None
    arrived_ptr,  # (groups,) zeros, or None with dw_ptr
    dx_ptr,  # written here in evaluation, where dx needs no sums; or None
    dz_ptr,  # the residual's gradient, written here where no other sweep follows; or None
    dy_ptr,
    signs_ptr,  # of forward with a residual, or None
    x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    C,
    S,
    tiles,
    splits,
    eps,
    eps_low,
    EVAL: tl.constexpr,
    RELU: tl.constexpr,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_P: tl.constexpr = 1,
    P: tl.constexpr = None,  # in evaluation, of lp.py: rstd is of a running norm of this order
    STD: tl.constexpr = False,  # whether evaluation's is running_std
    noise_ptr=None,  # (4, C), see noisy.py, or None
    seed_ptr=None,  # (), with noise
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    SUMS: tl.constexpr = partials_ptr is not None
    c0 = tl.program_id(0) * BLOCK_C
    split = tl.program_id(1)
    first, last = even_share(split, splits, tiles)
    mean, low, rstd = statistics(mean_ptr, rstd_ptr, eps, eps_low, c0, C, EVAL, BLOCK_C, ACC, P, STD)
    scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
    shift = shift_of(bias_ptr, low, scale, c0, C, BLOCK_C, ACC)
    noise = None if noise_ptr is None else load_noise(noise_ptr, seed_ptr, c0, C, BLOCK_C, ACC)
    dw, db = sums_of_tiles(
        dx_ptr, dz_ptr, dy_ptr, signs_ptr, x_ptr, mean, low, rstd, scale, shift, first, last, c0, C, S,
        SUMS, RELU, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, STAGES, ACC, noise
    )  # fmt: skip
    if SUMS:
        store_planes(partials_ptr, split, splits, c0, C, dw, db, None, BLOCK_C)
    if dw_ptr is not None:
        last_to_come = is_last(arrived_ptr + tl.program_id(0), splits)
        if last_to_come:
            store_sums(dw_ptr, db_ptr, partials_ptr, c0, C, splits, BLOCK_C, BLOCK_P, ACC)


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_input_gradient_kernel(
    dx_ptr,
    dz_ptr,  # the residual's gradient, or None
    dy_ptr,
    signs_ptr,  # of forward with a residual, or None
    x_ptr,
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    dw_ptr,  # (C,): sum(dz x_hat), in the statistics' dtype
    db_ptr,  # (C,): sum(dz)
    count_ptr,  # (1,): the elements of a channel that mean, rstd, dw and db are of; or None: those of x
    C,
    S,
    tiles,
    splits,
    RELU: tl.constexpr,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
    EVICT: tl.constexpr = "",  # of what the last sweep moves
    noise_ptr=None,  # (4, C), see noisy.py, or None
    seed_ptr=None,  # (), with noise
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_C
    first, last = even_share(splits - 1 - tl.program_id(1), splits, tiles)
    mean, low, rstd = statistics(mean_ptr, rstd_ptr, 0.0, 0.0, c0, C, False, BLOCK_C, ACC)
    scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
    shift = shift_of(bias_ptr, low, scale, c0, C, BLOCK_C, ACC)
    dw = channel_values(dw_ptr, c0, C, BLOCK_C, ACC)
    db = channel_values(db_ptr, c0, C, BLOCK_C, ACC)
    n = elements_before(tiles, S, BLOCK_S).to(ACC) if count_ptr is None else tl.load(count_ptr).to(ACC)
    noise = None if noise_ptr is None else load_noise(noise_ptr, seed_ptr, c0, C, BLOCK_C, ACC)
    input_gradient_of_tiles(
        dx_ptr, dz_ptr, dy_ptr, signs_ptr, x_ptr, mean, low, rstd, scale, shift, dw, db, n,
        first, last, c0, C, S, RELU, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, STAGES, ACC, EVICT, noise
    )  # fmt: skip
