"""The kernels of rows that stay in registers, in both directions; launch.py has the formulas.

A thread has the same columns of every row, and of weight and bias, so that values change threads only in sums. All that
is loaded is asked for before the first sum waits for it.

Backward a row may be in `SLICES`, which are programs that run at the same time: each has dw and db of its columns, and
they add up c1 and c2 of a row at a barrier.
"""

import triton
import triton.language as tl

from normlib.kernels.barrier import arrive, leave, wait
from normlib.kernels.numerics import accumulator, blocks, divide, load, round_to, store, widen
from normlib.kernels.reduction import rstd_of, sum_pair
from normlib.kernels.row_norm.values import affine, aligned, load_row, load_statistics, of_part, save_statistics
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
    BLOCK_N: tl.constexpr,
    CENTRED: tl.constexpr,
    ZERO_CENTRED: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    x_stride = aligned(x_stride, ALIGN)
    residual_stride = aligned(residual_stride, ALIGN)
    row = (tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    block = tl.broadcast_to(tl.arange(0, BLOCK_N)[None, :], [BLOCK_M, BLOCK_N])

    streams = load_row(x_ptr + row * x_stride, row, block, M, N, CHUNKS)
    if residual_ptr is not None:
        residuals = load_row(residual_ptr + row * residual_stride, row, block, M, N, CHUNKS)
        sums = ()
        for i in tl.static_range(CHUNKS):
            n = i * BLOCK_N + block
            z = round_to(widen(streams[i], ACC) + widen(residuals[i], ACC), z_ptr.dtype.element_ty)
            store(z_ptr + row * N + n, z, (row < M) & (n < N))
            sums = sums + (z,)
        streams = sums

    ds = ()
    lanes = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for i in tl.static_range(CHUNKS):
        x = widen(streams[i], ACC)
        ds = ds + (x,)
        lanes += x
    mean = tl.zeros([BLOCK_M, 1], ACC)
    low = tl.zeros([BLOCK_M, 1], ACC)
    if CENTRED:
        mean = tl.sum(lanes, 1, keep_dims=True) / N
        xs = ds
        ds = ()
        lanes = tl.zeros([BLOCK_M, BLOCK_N], ACC)
        for i in tl.static_range(CHUNKS):
            d = tl.where(i * BLOCK_N + block < N, xs[i] - mean, 0.0)
            ds = ds + (d,)
            lanes += d
        low = tl.sum(lanes, 1, keep_dims=True) / N

    lanes = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for i in tl.static_range(CHUNKS):
        if i * BLOCK_N < PARTIAL_N:
            d = tl.where(i * BLOCK_N + block < PARTIAL_N, ds[i] - low, 0.0)
            lanes += d * d
    squares = tl.sum(lanes, 1, keep_dims=True)
    rstd = rstd_of(divide(squares, tl.zeros_like(squares) + PARTIAL_N), eps, eps_low, ACC)
    save_statistics(mean_ptr, rstd_ptr, row, M, mean, low, rstd, CENTRED)

    for i in tl.static_range(CHUNKS):
        n = i * BLOCK_N + block
        y = affine((ds[i] - low) * rstd, weight_ptr, bias_ptr, n, n < N, ZERO_CENTRED, ACC)
        store(y_ptr + row * N + n, y, (row < M) & (n < N))


@triton.jit
def _sum_over_slices(c1, c2, sums_ptr, arrived_ptr, long_row, step, CENTRED: tl.constexpr, BLOCK_K: tl.constexpr):
    """Returns c1 and c2 of a row: the sums over its slices, once all of them have arrived."""
    ACC: tl.constexpr = c1.dtype
    part, slices = tl.program_id(0), tl.num_programs(0)
    k = tl.arange(0, BLOCK_K)[None, :]
    of_row = sums_ptr + long_row * (2 * BLOCK_K)
    store(of_row + part, c1, True)
    if CENTRED:
        store(of_row + BLOCK_K + part, c2, True)
    arrive(arrived_ptr)
    wait(arrived_ptr, slices * (step + 1))
    c1 = tl.sum(load(of_row + k, k < slices, ACC), 1, keep_dims=True)
    if CENTRED:
        c2 = tl.sum(load(of_row + BLOCK_K + k, k < slices, ACC), 1, keep_dims=True)
    return c1, c2


@triton.jit(do_not_specialize=BATCH)
def _row_norm_backward_kernel(
    dx_ptr,  # (M, N) or None
    partials_ptr,  # (DW + DB, programs, N) partial sums of dw and of db
    sums_ptr,  # (M, 2, SLICES): sum(x_hat wdy), sum(wdy) of every slice; or None
    arrived_ptr,  # (2, programs) zeros: slices that have arrived, and left; or None
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
    BLOCK_N: tl.constexpr,
    SLICES: tl.constexpr,  # up to a power of two
    AHEAD: tl.constexpr,  # whether the next rows are loaded before these are done
    CENTRED: tl.constexpr,
    ZERO_CENTRED: tl.constexpr,
    DW: tl.constexpr,
    DB: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    x_stride = aligned(x_stride, ALIGN)
    dy_stride = aligned(dy_stride, ALIGN)
    dz_stride = aligned(dz_stride, ALIGN)
    group, groups = tl.program_id(1), tl.num_programs(1)
    lane = tl.arange(0, BLOCK_M)[:, None]
    block = tl.broadcast_to(tl.arange(0, BLOCK_N)[None, :], [BLOCK_M, BLOCK_N])
    # Not tl.zeros: a tuple of those does not go through a loop on every Triton we support.
    zero = block.to(ACC) * 0.0
    if SLICES > 1:
        for _ in tl.static_range(CHUNKS):
            block += tl.program_id(0) * BLOCK_N
    EVEN: tl.constexpr = SLICES > 1 and N % (CHUNKS * BLOCK_N) == 0

    dws = ()
    dbs = ()
    weights = ()
    for i in tl.static_range(CHUNKS):
        n = i * BLOCK_N + block
        dws = dws + (zero,)
        dbs = dbs + (zero,)
        weights = weights + (affine(zero + 1.0, weight_ptr, None, n, (n < N) | EVEN, ZERO_CENTRED, ACC),)

    tiles = blocks(M, BLOCK_M)
    if AHEAD:
        first = (tiles * 0 + group) * BLOCK_M + lane  # in as many bits as M
        long_row = first.to(tl.int64)
        next_mean, next_low, next_rstd = load_statistics(mean_ptr, rstd_ptr, first, M, CENTRED, ACC)
        next_dys = load_row(dy_ptr + long_row * dy_stride, first, block, M, N, CHUNKS, EVEN)
        next_xs = load_row(x_ptr + long_row * x_stride, first, block, M, N, CHUNKS, EVEN)
    for tile in range(group, tiles, groups):
        row = tile * BLOCK_M + lane
        long_row = row.to(tl.int64)
        if AHEAD:
            mean, low, rstd = next_mean, next_low, next_rstd
            dys = next_dys
            xs = next_xs
            ahead = tl.minimum(tile + groups, tiles) * BLOCK_M + lane
            next_dys = load_row(dy_ptr + ahead.to(tl.int64) * dy_stride, ahead, block, M, N, CHUNKS, EVEN)
            next_xs = load_row(x_ptr + ahead.to(tl.int64) * x_stride, ahead, block, M, N, CHUNKS, EVEN)
        else:
            mean, low, rstd = load_statistics(mean_ptr, rstd_ptr, row, M, CENTRED, ACC)
            dys = load_row(dy_ptr + long_row * dy_stride, row, block, M, N, CHUNKS, EVEN)
            xs = load_row(x_ptr + long_row * x_stride, row, block, M, N, CHUNKS, EVEN)
        x_hats = ()
        wdys = ()
        next_dws = ()
        next_dbs = ()
        c1 = tl.zeros([BLOCK_M, BLOCK_N], ACC)
        c2 = tl.zeros([BLOCK_M, BLOCK_N], ACC)
        for i in tl.static_range(CHUNKS):
            n = i * BLOCK_N + block
            dy = widen(dys[i], ACC)
            x_hat = ((widen(xs[i], ACC) - mean) - low) * rstd
            if CENTRED:
                x_hat = tl.where((n < N) | EVEN, x_hat, 0.0)
            wdy = dy * weights[i]
            next_dws = next_dws + (dws[i] + dy * x_hat,)
            next_dbs = next_dbs + (dbs[i] + dy,)
            c1 += x_hat * wdy
            c2 += wdy
            x_hats = x_hats + (x_hat,)
            wdys = wdys + (wdy,)
        dws = next_dws
        dbs = next_dbs
        if dx_ptr is not None:
            if CENTRED:
                c1, c2 = sum_pair(c1, c2, 1)
            else:
                c1 = tl.sum(c1, 1, keep_dims=True)
                c2 = tl.zeros_like(c1)
            if SLICES > 1:
                step = (tile - group) // groups
                c1, c2 = _sum_over_slices(c1, c2, sums_ptr, arrived_ptr + group, long_row, step, CENTRED, SLICES)
            c1 = c1 / PARTIAL_N
            c2 = c2 / N
        if AHEAD:
            # Any earlier, and whoever waits for these few values would wait for the next rows too.
            next_mean, next_low, next_rstd = load_statistics(mean_ptr, rstd_ptr, ahead, M, CENTRED, ACC)
        if dx_ptr is not None:
            for i in tl.static_range(CHUNKS):
                n = i * BLOCK_N + block
                mask = (row < M) & ((n < N) | EVEN)
                dx = ((wdys[i] - c2) - of_part(x_hats[i] * c1, n, N, PARTIAL_N)) * rstd
                if dz_ptr is not None:
                    dx += load(dz_ptr + long_row * dz_stride + n, mask, ACC)
                store(dx_ptr + long_row * N + n, dx, mask)
    if SLICES > 1:
        leave(arrived_ptr + groups + group, tl.num_programs(0), arrived_ptr + group)

    dw_row = partials_ptr + group.to(tl.int64) * N
    db_row = dw_row + DW * groups.to(tl.int64) * N
    for i in tl.static_range(CHUNKS):
        n = i * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        if SLICES > 1:
            for _ in tl.static_range(CHUNKS):
                n += tl.program_id(0) * BLOCK_N
        if DW:
            store(dw_row + n, tl.sum(dws[i], 0, keep_dims=True), n < N)
        if DB:
            store(db_row + n, tl.sum(dbs[i], 0, keep_dims=True), n < N)
