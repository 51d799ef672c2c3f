"""The kernels of rows that stay in registers, in both directions; launch.py has the formulas."""

import triton
import triton.language as tl

from normlib.kernels.numerics import accumulator, blocks, divide, load, store
from normlib.kernels.reduction import rstd_of
from normlib.kernels.row_norm.values import affine, aligned, load_statistics, load_stream, of_part, save_statistics
from normlib.kernels.row_norm.wide import BATCH


@triton.jit(do_not_specialize=BATCH)
def _row_norm_forward_kernel(
    y_ptr,  # (M, N)
    mean_ptr,  # (2, M): mean, low; or None
    rstd_ptr,  # (M,)
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
    BLOCK_M: tl.constexpr,
    CENTRED: tl.constexpr,
    ZERO_CENTRED: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    x_stride = aligned(x_stride, ALIGN)
    residual_stride = aligned(residual_stride, ALIGN)
    row = (tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]

    xs = ()
    total = tl.zeros([BLOCK_M, 1], ACC)
    for i in tl.static_range(len(CHUNKS)):
        n = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])[None, :]
        mask = (row < M) & (n < N)
        stream = x_ptr + row * x_stride + n
        x = load_stream(stream, residual_ptr, row * residual_stride, z_ptr, row * N, n, mask, ACC)
        xs = xs + (x,)
        if CENTRED:
            total += tl.sum(x, 1, keep_dims=True)

    mean = total / N
    low = tl.zeros([BLOCK_M, 1], ACC)
    if CENTRED:
        for i in tl.static_range(len(CHUNKS)):
            n = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])[None, :]
            low += tl.sum(tl.where(n < N, xs[i] - mean, 0.0), 1, keep_dims=True)
        low = low / N

    squares = tl.zeros([BLOCK_M, 1], ACC)
    for i in tl.static_range(len(CHUNKS)):
        if CHUNKS[i][0] < PARTIAL_N:
            n = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])[None, :]
            d = tl.where(n < PARTIAL_N, (xs[i] - mean) - low, 0.0)
            squares += tl.sum(d * d, 1, keep_dims=True)
    rstd = rstd_of(divide(squares, tl.zeros_like(squares) + PARTIAL_N), eps, eps_low, ACC)
    save_statistics(mean_ptr, rstd_ptr, row, M, mean, low, rstd, CENTRED)

    for i in tl.static_range(len(CHUNKS)):
        n = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])[None, :]
        y = affine(((xs[i] - mean) - low) * rstd, weight_ptr, bias_ptr, n, n < N, ZERO_CENTRED, ACC)
        store(y_ptr + row * N + n, y, (row < M) & (n < N))


@triton.jit(do_not_specialize=BATCH)
def _row_norm_backward_kernel(
    dx_ptr,  # (M, N) or None
    partials_ptr,  # (DW + DB, programs, N) partial sums of dw and of db
    dy_ptr,  # (M, N), rows dy_stride apart
    x_ptr,  # (M, N), rows x_stride apart
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    dz_ptr,  # (M, N), rows dz_stride apart, or None
    M,
    dy_stride,
    x_stride,
    dz_stride,
    ALIGN: tl.constexpr,
    N: tl.constexpr,
    PARTIAL_N: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CENTRED: tl.constexpr,
    ZERO_CENTRED: tl.constexpr,
    DW: tl.constexpr,
    DB: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    x_stride = aligned(x_stride, ALIGN)
    dy_stride = aligned(dy_stride, ALIGN)
    dz_stride = aligned(dz_stride, ALIGN)
    pid = tl.program_id(0)

    dws = ()
    dbs = ()
    for i in tl.static_range(len(CHUNKS)):
        # Not tl.zeros: a tuple of those does not go through a loop on every Triton we support.
        zero = (tl.arange(0, BLOCK_M)[:, None] + tl.arange(0, CHUNKS[i][1])[None, :]).to(ACC) * 0.0
        dws = dws + (zero,)
        dbs = dbs + (zero,)

    for tile in range(pid, blocks(M, BLOCK_M), tl.num_programs(0)):
        row = (tile * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
        long_row = row.to(tl.int64)
        mean, low, rstd = load_statistics(mean_ptr, rstd_ptr, row, M, CENTRED, ACC)
        x_hats = ()
        wdys = ()
        next_dws = ()
        next_dbs = ()
        c1 = tl.zeros([BLOCK_M, 1], ACC)
        c2 = tl.zeros([BLOCK_M, 1], ACC)
        for i in tl.static_range(len(CHUNKS)):
            n = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])[None, :]
            mask = (row < M) & (n < N)
            dy = load(dy_ptr + long_row * dy_stride + n, mask, ACC)
            x = load(x_ptr + long_row * x_stride + n, mask, ACC)
            x_hat = ((x - mean) - low) * rstd
            if CENTRED:
                x_hat = tl.where(n < N, x_hat, 0.0)
            next_dws = next_dws + (dws[i] + dy * x_hat,)
            next_dbs = next_dbs + (dbs[i] + dy,)
            wdy = affine(dy, weight_ptr, None, n, n < N, ZERO_CENTRED, ACC)
            c1 += tl.sum(x_hat * wdy, 1, keep_dims=True)
            if CENTRED:
                c2 += tl.sum(wdy, 1, keep_dims=True)
            x_hats = x_hats + (x_hat,)
            wdys = wdys + (wdy,)
        dws = next_dws
        dbs = next_dbs
        if dx_ptr is not None:
            c1 = c1 / PARTIAL_N
            c2 = c2 / N
            for i in tl.static_range(len(CHUNKS)):
                n = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])[None, :]
                mask = (row < M) & (n < N)
                dx = ((wdys[i] - c2) - of_part(x_hats[i] * c1, n, N, PARTIAL_N)) * rstd
                if dz_ptr is not None:
                    dx += load(dz_ptr + long_row * dz_stride + n, mask, ACC)
                store(dx_ptr + long_row * N + n, dx, mask)

    dw_row = partials_ptr + pid.to(tl.int64) * N
    db_row = dw_row + DW * tl.num_programs(0).to(tl.int64) * N
    for i in tl.static_range(len(CHUNKS)):
        n = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])
        if DW:
            store(dw_row + n, tl.sum(dws[i], 0), n < N)
        if DB:
            store(db_row + n, tl.sum(dbs[i], 0), n < N)
