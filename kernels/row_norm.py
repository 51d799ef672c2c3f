"""The kernels of layer norm and RMS norm: rows x (M, N), normalized one by one. RMS norm is layer norm with mean = 0.

    mean  = sum(x) / N   (CENTRED; else 0)    var = sum((x - mean)^2) / N        rstd = 1 / sqrt(var + eps)
    x_hat = (x - mean) rstd                   y = x_hat weight + bias

    wdy = weight dy      c1 = sum(x_hat wdy) / N      c2 = sum(wdy) / N   (CENTRED; else 0)
    dx  = rstd (wdy - x_hat c1 - c2)          dw = sum over rows of dy x_hat        db = sum over rows of dy

A row that fits stays in registers, as a few power-of-two chunks (plan.row_chunks): forward moves x and y once, backward
dy, x and dx once. A longer one is swept twice, the second time backwards so that it meets the cache. The backward grid
is persistent: each program adds dw and db of its rows in registers and leaves one partial row of each; a second stage
adds the partials in a fixed order. Saved for backward: x, rstd and, if CENTRED, the mean as a pair of floats.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from normlib.kernels import plan as plans
from normlib.kernels.device import device_of, on
from normlib.kernels.numerics import accumulator, blocks, divide, float_pair, from_pair, load, reciprocal_sqrt, store
from normlib.kernels.plan import Device
from normlib.kernels.reduction import merge_moments, sum_partials, tile_moments

# Arguments that follow the number of rows: no compilation of their own for a 1 or a multiple of 16.
BATCH = ("M",)


@triton.jit
def _aligned(stride, ALIGN: tl.constexpr):
    """The stride, in a form that tells the compiler that rows start at multiples of ALIGN: loads that wide."""
    return stride // ALIGN * ALIGN


@triton.jit
def _save_statistics(mean_ptr, rstd_ptr, row, M, mean, low, rstd, CENTRED: tl.constexpr):
    store(rstd_ptr + row, rstd, row < M)
    if CENTRED:
        store(mean_ptr + row, mean, row < M)
        store(mean_ptr + M + row, low, row < M)


@triton.jit
def _load_statistics(mean_ptr, rstd_ptr, row, M, CENTRED: tl.constexpr, ACC: tl.constexpr):
    """(mean, low, rstd); zeros past the last row, so that such a row adds nothing to dw."""
    rstd = load(rstd_ptr + row, row < M, ACC)
    if CENTRED:
        return load(mean_ptr + row, row < M, ACC), load(mean_ptr + M + row, row < M, ACC), rstd
    else:
        return 0.0, 0.0, rstd


@triton.jit
def _affine(x_hat, weight_ptr, bias_ptr, n, mask, ACC: tl.constexpr):
    if weight_ptr is not None:
        x_hat *= load(weight_ptr + n, mask, ACC)
    if bias_ptr is not None:
        x_hat += load(bias_ptr + n, mask, ACC)
    return x_hat


@triton.jit(do_not_specialize=BATCH)
def _row_norm_forward_kernel(
    y_ptr,  # (M, N)
    mean_ptr,  # (2, M): mean, low; or None
    rstd_ptr,  # (M,)
    x_ptr,  # (M, N), rows x_stride apart
    weight_ptr,  # (N,) or None
    bias_ptr,  # (N,) or None
    M,
    x_stride,
    eps,
    eps_low,
    ALIGN: tl.constexpr,
    N: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CENTRED: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    x_stride = _aligned(x_stride, ALIGN)
    row = (tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]

    xs = ()
    total = tl.zeros([BLOCK_M, 1], ACC)
    for i in tl.static_range(len(CHUNKS)):
        n = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])[None, :]
        x = load(x_ptr + row * x_stride + n, (row < M) & (n < N), ACC)
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
        n = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])[None, :]
        d = tl.where(n < N, (xs[i] - mean) - low, 0.0)
        squares += tl.sum(d * d, 1, keep_dims=True)
    rstd = reciprocal_sqrt(divide(squares, tl.zeros_like(squares) + N) + from_pair(eps, eps_low, ACC))
    _save_statistics(mean_ptr, rstd_ptr, row, M, mean, low, rstd, CENTRED)

    for i in tl.static_range(len(CHUNKS)):
        n = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])[None, :]
        y = _affine(((xs[i] - mean) - low) * rstd, weight_ptr, bias_ptr, n, n < N, ACC)
        store(y_ptr + row * N + n, y, (row < M) & (n < N))


@triton.jit(do_not_specialize=BATCH)
def _row_norm_forward_loop_kernel(
    y_ptr,
    mean_ptr,
    rstd_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    M,
    x_stride,
    eps,
    eps_low,
    ALIGN: tl.constexpr,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CENTRED: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    x_stride = _aligned(x_stride, ALIGN)
    row = tl.program_id(0)
    x_row = x_ptr + row.to(tl.int64) * x_stride
    y_row = y_ptr + row.to(tl.int64) * N
    block = tl.arange(0, BLOCK_N)[None, :]

    count = tl.zeros([1, 1], ACC)
    mean = tl.zeros([1, 1], ACC)
    low = tl.zeros([1, 1], ACC)
    m2 = tl.zeros([1, 1], ACC)
    lanes = tl.zeros([1, BLOCK_N], ACC)
    for start in range(0, N, BLOCK_N):
        n = start + block
        x = load(x_row + n, n < N, ACC)
        if CENTRED:
            here = tl.zeros([1, 1], ACC) + tl.minimum(BLOCK_N, N - start)
            block_mean, block_low, block_m2 = tile_moments(x, n < N, here, 1)
            count, mean, low, m2 = merge_moments(count, mean, low, m2, here, block_mean, block_low, block_m2)
        else:
            lanes += x * x
    if not CENTRED:
        m2 = tl.sum(lanes, 1, keep_dims=True)
    rstd = reciprocal_sqrt(divide(m2, tl.zeros_like(m2) + N) + from_pair(eps, eps_low, ACC))
    _save_statistics(mean_ptr, rstd_ptr, row + tl.zeros([1, 1], tl.int32), M, mean, low, rstd, CENTRED)

    for i in range(tl.cdiv(N, BLOCK_N)):
        n = (tl.cdiv(N, BLOCK_N) - 1 - i) * BLOCK_N + block
        x = load(x_row + n, n < N, ACC)
        store(y_row + n, _affine(((x - mean) - low) * rstd, weight_ptr, bias_ptr, n, n < N, ACC), n < N)


@triton.jit(do_not_specialize=BATCH)
def _row_norm_backward_kernel(
    dx_ptr,  # (M, N) or None
    dw_ptr,  # (programs, N) partial sums, or None
    db_ptr,  # (programs, N) partial sums, or None
    dy_ptr,  # (M, N), rows dy_stride apart
    x_ptr,  # (M, N), rows x_stride apart
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    M,
    dy_stride,
    x_stride,
    ALIGN: tl.constexpr,
    N: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CENTRED: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    x_stride = _aligned(x_stride, ALIGN)
    dy_stride = _aligned(dy_stride, ALIGN)
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
        mean, low, rstd = _load_statistics(mean_ptr, rstd_ptr, row, M, CENTRED, ACC)
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
            wdy = _affine(dy, weight_ptr, None, n, n < N, ACC)
            c1 += tl.sum(x_hat * wdy, 1, keep_dims=True)
            if CENTRED:
                c2 += tl.sum(wdy, 1, keep_dims=True)
            x_hats = x_hats + (x_hat,)
            wdys = wdys + (wdy,)
        dws = next_dws
        dbs = next_dbs
        if dx_ptr is not None:
            c1 = c1 / N
            c2 = c2 / N
            for i in tl.static_range(len(CHUNKS)):
                n = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])[None, :]
                dx = ((wdys[i] - c2) - x_hats[i] * c1) * rstd
                store(dx_ptr + long_row * N + n, dx, (row < M) & (n < N))

    for i in tl.static_range(len(CHUNKS)):
        n = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])
        if dw_ptr is not None:
            store(dw_ptr + pid.to(tl.int64) * N + n, tl.sum(dws[i], 0), n < N)
        if db_ptr is not None:
            store(db_ptr + pid.to(tl.int64) * N + n, tl.sum(dbs[i], 0), n < N)


@triton.jit(do_not_specialize=BATCH)
def _row_norm_input_gradient_loop_kernel(
    dx_ptr,
    dy_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    M,
    dy_stride,
    x_stride,
    ALIGN: tl.constexpr,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CENTRED: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    x_stride = _aligned(x_stride, ALIGN)
    dy_stride = _aligned(dy_stride, ALIGN)
    row = tl.program_id(0)
    dy_row = dy_ptr + row.to(tl.int64) * dy_stride
    x_row = x_ptr + row.to(tl.int64) * x_stride
    dx_row = dx_ptr + row.to(tl.int64) * N
    mean, low, rstd = _load_statistics(mean_ptr, rstd_ptr, row + tl.zeros([1, 1], tl.int32), M, CENTRED, ACC)
    block = tl.arange(0, BLOCK_N)[None, :]

    c1_lanes = tl.zeros([1, BLOCK_N], ACC)
    c2_lanes = tl.zeros([1, BLOCK_N], ACC)
    for start in range(0, N, BLOCK_N):
        n = start + block
        wdy = _affine(load(dy_row + n, n < N, ACC), weight_ptr, None, n, n < N, ACC)
        x = load(x_row + n, n < N, ACC)
        c1_lanes += tl.where(n < N, ((x - mean) - low) * rstd * wdy, 0.0)
        if CENTRED:
            c2_lanes += wdy
    c1 = tl.sum(c1_lanes, 1, keep_dims=True) / N
    c2 = tl.sum(c2_lanes, 1, keep_dims=True) / N

    for i in range(tl.cdiv(N, BLOCK_N)):
        n = (tl.cdiv(N, BLOCK_N) - 1 - i) * BLOCK_N + block
        wdy = _affine(load(dy_row + n, n < N, ACC), weight_ptr, None, n, n < N, ACC)
        x_hat = ((load(x_row + n, n < N, ACC) - mean) - low) * rstd
        store(dx_row + n, ((wdy - c2) - x_hat * c1) * rstd, n < N)


@triton.jit(do_not_specialize=BATCH)
def _row_norm_weight_gradient_kernel(
    dw_ptr,  # (splits, N) partial sums, or None
    db_ptr,  # (splits, N) partial sums, or None
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
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    x_stride = _aligned(x_stride, ALIGN)
    dy_stride = _aligned(dy_stride, ALIGN)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    split = tl.program_id(1)
    dw = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    db = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for tile in range(split, blocks(M, BLOCK_M), tl.num_programs(1)):
        row = (tile * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
        mask = (row < M) & (n < N)
        mean, low, rstd = _load_statistics(mean_ptr, rstd_ptr, row, M, CENTRED, ACC)
        dy = load(dy_ptr + row.to(tl.int64) * dy_stride + n, mask, ACC)
        x = load(x_ptr + row.to(tl.int64) * x_stride + n, mask, ACC)
        dw += dy * (((x - mean) - low) * rstd)
        db += dy
    if dw_ptr is not None:
        store(dw_ptr + split.to(tl.int64) * N + n, tl.sum(dw, 0, keep_dims=True), n < N)
    if db_ptr is not None:
        store(db_ptr + split.to(tl.int64) * N + n, tl.sum(db, 0, keep_dims=True), n < N)


def as_rows(x: Tensor, n: int) -> Tensor:
    """x (..., n) as (M, n) with unit stride along a row; a copy only if its strides allow no such view."""
    rows = x.reshape(-1, n)
    return rows if rows.stride(1) == 1 or n == 1 else rows.contiguous()


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    n: int,
    device: Device | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y like x but contiguous, mean (2, M) or (0,), rstd (M,)) of x (..., n)."""
    rows = as_rows(x, n)
    m = rows.shape[0]
    stats = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    mean = torch.empty((2, m) if centred else (0,), dtype=stats, device=x.device)
    rstd = torch.empty(m, dtype=stats, device=x.device)
    if x.numel() == 0:
        return y, mean.zero_(), rstd.zero_()
    plan = plans.row_forward(n, x.element_size(), device or device_of(x))
    align = plans.alignment(rows.stride(0))
    arguments = (y, mean if centred else None, rstd, rows, weight, bias, m, rows.stride(0), *float_pair(eps))
    with on(x):
        if plan.chunks:
            _row_norm_forward_kernel[(triton.cdiv(m, plan.block_m),)](
                *arguments,
                ALIGN=align,
                N=n,
                CHUNKS=plan.chunks,
                BLOCK_M=plan.block_m,
                CENTRED=centred,
                **plan.options,
            )
        else:
            _row_norm_forward_loop_kernel[(m,)](
                *arguments, ALIGN=align, N=n, BLOCK_N=plan.block_n, CENTRED=centred, **plan.options
            )
    return y, mean, rstd


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    centred: bool,
    n: int,
    dw_dtype: torch.dtype | None,
    db_dtype: torch.dtype | None,
    need_dx: bool,
    device: Device | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dw, db); dw and db (n,) in the given dtypes, None where the dtype is None, dx None unless needed."""
    x_rows, dy_rows = as_rows(x, n), as_rows(dy, n)
    m = x_rows.shape[0]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if need_dx else None
    dw, db = (None if t is None else torch.empty(n, dtype=t, device=x.device) for t in (dw_dtype, db_dtype))
    outputs = tuple(t for t in (dw, db) if t is not None)
    if x.numel() == 0:
        return dx, *(None if t is None else t.zero_() for t in (dw, db))
    device = device or device_of(x)
    plan = plans.row_backward(m, n, x.element_size(), device)
    partials = torch.empty((len(outputs), plan.programs, n), dtype=rstd.dtype, device=x.device)
    rest = iter(partials)
    dw_partials, db_partials = (None if t is None else next(rest) for t in (dw, db))
    mean = mean if centred else None
    shape = (m, dy_rows.stride(0), x_rows.stride(0))
    align = plans.alignment(*shape[1:])
    with on(x):
        if plan.rows.chunks:
            _row_norm_backward_kernel[(plan.programs,)](
                dx,
                dw_partials,
                db_partials,
                dy_rows,
                x_rows,
                mean,
                rstd,
                weight,
                *shape,
                ALIGN=align,
                N=n,
                CHUNKS=plan.rows.chunks,
                BLOCK_M=plan.rows.block_m,
                CENTRED=centred,
                **plan.rows.options,
            )
        else:
            if need_dx:
                _row_norm_input_gradient_loop_kernel[(m,)](
                    dx,
                    dy_rows,
                    x_rows,
                    mean,
                    rstd,
                    weight,
                    *shape,
                    ALIGN=align,
                    N=n,
                    BLOCK_N=plan.rows.block_n,
                    CENTRED=centred,
                    **plan.rows.options,
                )
            if outputs:
                _row_norm_weight_gradient_kernel[(triton.cdiv(n, plan.block_columns), plan.programs)](
                    dw_partials,
                    db_partials,
                    dy_rows,
                    x_rows,
                    mean,
                    rstd,
                    *shape,
                    ALIGN=align,
                    N=n,
                    BLOCK_M=plan.block_rows,
                    BLOCK_N=plan.block_columns,
                    CENTRED=centred,
                    **plan.rows.options,
                )
        if outputs:
            sum_partials(partials, outputs, plans.merge(plan.programs, n, device))
    return dx, dw, db
