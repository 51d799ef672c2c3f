"""The kernels of row norms for rows that no program can hold in registers; the symbols are those of launch.py.

One program sweeps a row twice in a loop over its columns, the second time backwards so that it meets the cache. Forward
the grid is persistent, of as many programs as have their rows in cache at a time (plan.row_forward). Backward is for
devices on which programs may not wait for each other; on others a row goes in slices (narrow.py).
"""

import triton
import triton.language as tl

from normlib.kernels.numerics import accumulator, blocks, divide, load, store
from normlib.kernels.reduction import merge_moments, rstd_of, tile_moments
from normlib.kernels.row_norm.values import affine, aligned, load_statistics, load_stream, of_part, save_statistics

# Arguments that follow the number of rows: no compilation of their own for a 1 or a multiple of 16.
BATCH = ("M",)


@triton.jit(do_not_specialize=BATCH)
def _row_norm_forward_loop_kernel(
    y_ptr,
    mean_ptr,
    rstd_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    z_ptr,
    M,
    x_stride,
    residual_stride,
    eps,
    eps_low,
    columns,  # N once more, unknown to the compiler: loops that it unrolls spill
    ALIGN: tl.constexpr,
    N: tl.constexpr,
    PARTIAL_N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CENTRED: tl.constexpr,
    ZERO_CENTRED: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    NARROW: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth == 16
    x_stride = aligned(x_stride, ALIGN)
    residual_stride = aligned(residual_stride, ALIGN)
    block = tl.arange(0, BLOCK_N)[None, :]

    for row in range(tl.program_id(0), M, tl.num_programs(0)):
        long_row = tl.cast(row, tl.int64)
        x_row = x_ptr + long_row * x_stride
        y_row = y_ptr + long_row * N
        residual_row = long_row * residual_stride
        z_row = long_row * N

        count = tl.zeros([1, 1], ACC)
        mean = tl.zeros([1, 1], ACC)
        low = tl.zeros([1, 1], ACC)
        m2 = tl.zeros([1, 1], ACC)
        lanes = tl.zeros([1, BLOCK_N], ACC)
        for start in range(0, tl.minimum(PARTIAL_N, columns), BLOCK_N):
            n = start + block
            x = load_stream(x_row + n, residual_ptr, residual_row, z_ptr, z_row, n, n < PARTIAL_N, ACC)
            if CENTRED:
                here = tl.zeros([1, 1], ACC) + tl.minimum(BLOCK_N, N - start)
                block_mean, block_low, block_m2 = tile_moments(x, n < N, here, 1, NARROW)
                count, mean, low, m2 = merge_moments(count, mean, low, m2, here, block_mean, block_low, block_m2)
            else:
                lanes += x * x
        if not CENTRED:
            m2 = tl.sum(lanes, 1, keep_dims=True)
        rstd = rstd_of(divide(m2, tl.zeros_like(m2) + PARTIAL_N), eps, eps_low, ACC)
        save_statistics(mean_ptr, rstd_ptr, row + tl.zeros([1, 1], tl.int32), M, mean, low, rstd, CENTRED)

        if residual_ptr is not None:
            tl.debug_barrier()  # z may be read by another thread than wrote it
        stream = x_row if residual_ptr is None else z_ptr + z_row
        for i in range(blocks(columns, BLOCK_N)):
            n = (tl.cdiv(N, BLOCK_N) - 1 - i) * BLOCK_N + block
            x = load(stream + n, n < N, ACC)
            y = affine(((x - mean) - low) * rstd, weight_ptr, bias_ptr, n, n < N, ZERO_CENTRED, ACC)
            store(y_row + n, y, n < N)


@triton.jit(do_not_specialize=BATCH)
def _row_norm_input_gradient_loop_kernel(
    dx_ptr,
    dy_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    dz_ptr,
    M,
    dy_stride,
    x_stride,
    dz_stride,
    ALIGN: tl.constexpr,
    N: tl.constexpr,
    PARTIAL_N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CENTRED: tl.constexpr,
    ZERO_CENTRED: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    row = tl.program_id(0)
    dy_row = dy_ptr + row.to(tl.int64) * aligned(dy_stride, ALIGN)
    x_row = x_ptr + row.to(tl.int64) * aligned(x_stride, ALIGN)
    dz_row = row.to(tl.int64) * aligned(dz_stride, ALIGN)
    dx_row = dx_ptr + row.to(tl.int64) * N
    mean, low, rstd = load_statistics(mean_ptr, rstd_ptr, row + tl.zeros([1, 1], tl.int32), M, CENTRED, ACC)
    block = tl.arange(0, BLOCK_N)[None, :]

    c1_lanes = tl.zeros([1, BLOCK_N], ACC)
    c2_lanes = tl.zeros([1, BLOCK_N], ACC)
    for start in range(0, N, BLOCK_N):
        n = start + block
        wdy = affine(load(dy_row + n, n < N, ACC), weight_ptr, None, n, n < N, ZERO_CENTRED, ACC)
        x = load(x_row + n, n < N, ACC)
        c1_lanes += tl.where(n < N, ((x - mean) - low) * rstd * wdy, 0.0)
        if CENTRED:
            c2_lanes += wdy
    c1 = tl.sum(c1_lanes, 1, keep_dims=True) / PARTIAL_N
    c2 = tl.sum(c2_lanes, 1, keep_dims=True) / N

    for i in range(tl.cdiv(N, BLOCK_N)):
        n = (tl.cdiv(N, BLOCK_N) - 1 - i) * BLOCK_N + block
        wdy = affine(load(dy_row + n, n < N, ACC), weight_ptr, None, n, n < N, ZERO_CENTRED, ACC)
        x_hat = ((load(x_row + n, n < N, ACC) - mean) - low) * rstd
        dx = ((wdy - c2) - of_part(x_hat * c1, n, N, PARTIAL_N)) * rstd
        if dz_ptr is not None:
            dx += load(dz_ptr + dz_row + n, n < N, ACC)
        store(dx_row + n, dx, n < N)


@triton.jit(do_not_specialize=BATCH)
def _row_norm_weight_gradient_kernel(
    partials_ptr,  # (DW + DB, splits, N) partial sums of dw and of db
    dy_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    M,
    dy_stride,
    x_stride,
    ALIGN: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CENTRED: tl.constexpr,
    DW: tl.constexpr,
    DB: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    x_stride = aligned(x_stride, ALIGN)
    dy_stride = aligned(dy_stride, ALIGN)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    split = tl.program_id(1)
    dw = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    db = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for tile in range(split, blocks(M, BLOCK_M), tl.num_programs(1)):
        row = (tile * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
        mask = (row < M) & (n < N)
        mean, low, rstd = load_statistics(mean_ptr, rstd_ptr, row, M, CENTRED, ACC)
        dy = load(dy_ptr + row.to(tl.int64) * dy_stride + n, mask, ACC)
        x = load(x_ptr + row.to(tl.int64) * x_stride + n, mask, ACC)
        dw += dy * (((x - mean) - low) * rstd)
        db += dy
    dw_row = partials_ptr + split.to(tl.int64) * N
    db_row = dw_row + DW * tl.num_programs(1).to(tl.int64) * N
    if DW:
        store(dw_row + n, tl.sum(dw, 0, keep_dims=True), n < N)
    if DB:
        store(db_row + n, tl.sum(db, 0, keep_dims=True), n < N)
