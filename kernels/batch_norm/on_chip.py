"""Batch norm's passes with a tensor held in registers: an element is loaded once; the formulas are launch.py's.

The grid is (channel groups, splits). A program has KEPT tiles at most, loads them all before it looks at any, and keeps
them while the splits of its channel group meet at a barrier. A group that is one program's needs none.
"""

import triton
import triton.language as tl

from normlib.kernels.barrier import arrive, leave, wait
from normlib.kernels.batch_norm.activation import load_input
from normlib.kernels.batch_norm.gradients import (
    add_splits,
    input_gradient,
    load_gradient,
    store_gradients,
    weight_terms,
)
from normlib.kernels.batch_norm.output import scale_of, shift_of, store_output
from normlib.kernels.batch_norm.statistics import finish_statistics, merge_splits, statistics
from normlib.kernels.batch_norm.tiles import BATCH, addresses, elements_before, store_planes
from normlib.kernels.numerics import accumulator, divide, even_share, store
from normlib.kernels.reduction import accurate_sum, is_finite, merge_moments, tile_moments


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_forward_on_chip_kernel(
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
    KEPT: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    NARROW: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth == 16
    group, split = tl.program_id(0), tl.program_id(1)
    c0 = group * BLOCK_C
    first, last = even_share(split, splits, tiles)
    xs = ()
    for i in tl.static_range(KEPT):
        tile = tl.minimum(first + i, last - 1)
        base, offsets, mask, elements = addresses(tile, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        xs = xs + (load_input(x_ptr + base + offsets, mask & (first + i < last), PRE_RELU, ACC),)
    count = tl.zeros([1, 1], ACC)
    mean = tl.zeros([BLOCK_C, 1], ACC)
    low = tl.zeros([BLOCK_C, 1], ACC)
    m2 = tl.zeros([BLOCK_C, 1], ACC)
    for i in tl.static_range(KEPT):
        if first + i < last:
            base, offsets, mask, elements = addresses(first + i, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
            tile_count = elements.to(ACC)
            tile_mean, tile_low, tile_m2 = tile_moments(xs[i], mask, tile_count, 1, NARROW)
            count, mean, low, m2 = merge_moments(count, mean, low, m2, tile_count, tile_mean, tile_low, tile_m2)
    low = tl.where(is_finite(low), low, 0.0)
    if partials_ptr is not None:
        store_planes(partials_ptr, split, splits, c0, C, mean, low, m2, BLOCK_C)
        arrive(arrived_ptr + group)
        wait(arrived_ptr + group, splits)
        leave(arrived_ptr + tl.num_programs(0) + group, splits, arrived_ptr + group)
        mean, low, m2 = merge_splits(partials_ptr, c0, C, S, tiles, splits, BLOCK_C, BLOCK_S, BLOCK_P, ACC)
    rstd = finish_statistics(
        mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, mean, low, m2,
        elements_before(tiles, S, BLOCK_S).to(ACC), split == 0, c0, C, eps, eps_low, momentum, momentum_low, BLOCK_C,
        ACC
    )  # fmt: skip
    scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
    shift = shift_of(bias_ptr, c0, C, BLOCK_C, ACC)
    for i in tl.static_range(KEPT):
        if first + i < last:
            base, offsets, mask, elements = addresses(first + i, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
            store_output(
                y_ptr, signs_ptr, residual_ptr, xs[i], mean, low, scale, shift, first + i, base + offsets, mask, c0, C,
                RELU, LAST, BLOCK_C, BLOCK_S, ACC
            )  # fmt: skip


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_backward_on_chip_kernel(
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
    RELU: tl.constexpr,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    KEPT: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    group, split = tl.program_id(0), tl.program_id(1)
    c0 = group * BLOCK_C
    first, last = even_share(split, splits, tiles)
    mean, low, rstd = statistics(mean_ptr, rstd_ptr, 0.0, 0.0, c0, C, False, BLOCK_C, ACC)
    scale, shift = rstd, rstd  # which only a ReLU asks for here
    if RELU:
        scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
        shift = shift_of(bias_ptr, c0, C, BLOCK_C, ACC)
    dw = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    db = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    xs = ()
    dzs = ()
    for i in tl.static_range(KEPT):
        tile = tl.minimum(first + i, last - 1)
        base, offsets, mask, _elements = addresses(tile, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        present = first + i < last
        mask = mask & present
        x = load_input(x_ptr + base + offsets, mask, PRE_RELU, ACC)
        dz = load_gradient(
            dy_ptr, signs_ptr, x, mean, low, scale, shift, base + offsets, mask, tile, c0, C,
            RELU, LAST, BLOCK_C, BLOCK_S, ACC, "", S, None, present
        )  # fmt: skip
        db += dz
        dw += weight_terms(dz, x, mean, low, mask)
        xs = xs + (x,)
        dzs = dzs + (dz,)
    dw = accurate_sum(dw, 1) * rstd
    db = accurate_sum(db, 1)
    if partials_ptr is not None:
        store_planes(partials_ptr, split, splits, c0, C, dw, db, None, BLOCK_C)
        arrive(arrived_ptr + group)
        wait(arrived_ptr + group, splits)
        leave(arrived_ptr + tl.num_programs(0) + group, splits, arrived_ptr + group)
        dw = add_splits(partials_ptr, c0, C, splits, BLOCK_C, BLOCK_P, ACC)
        db = add_splits(partials_ptr + tl.cast(splits, tl.int64) * C, c0, C, splits, BLOCK_C, BLOCK_P, ACC)
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    store(dw_ptr + c, dw, (c < C) & (split == 0))
    store(db_ptr + c, db, (c < C) & (split == 0))
    # Loaded again, and not kept: the registers are for x and dz.
    mean, low, rstd = statistics(mean_ptr, rstd_ptr, 0.0, 0.0, c0, C, False, BLOCK_C, ACC)
    scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
    n = elements_before(tiles, S, BLOCK_S).to(ACC)
    c1 = divide(dw * rstd, n)
    c2 = divide(db, n)
    for i in tl.static_range(KEPT):
        if first + i < last:
            base, offsets, mask, _elements = addresses(first + i, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
            dx = input_gradient(dzs[i], xs[i], mean, low, scale, c1, c2)
            store_gradients(dx_ptr, dz_ptr, dx, dzs[i], xs[i], base + offsets, mask, PRE_RELU)
