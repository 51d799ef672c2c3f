"""The kernels of weight normalization: rows x (M, N), each scaled to the length that its weight gives.

    norm = sqrt(sum(x^2))      x_hat = x / norm      y = weight x_hat
    dw   = sum(dy x_hat)       dx = weight / norm (dy - x_hat dw)

x is what Salimans and Kingma call v, weight their g and y their w; dx follows from y's two factors by the product rule,
d(1 / norm) = -x / norm^3 dx, and is orthogonal to x.

Squares are taken of x / scale, a power of two near the row's largest element, so that none overflows and none that
counts is lost: norm, y and both gradients are as good at 1e-30 and 1e30 as at 1. The scale divides out exactly, and
the norm itself is never formed: saved for backward are norm / scale and 1 / scale. A row without a length (all zeros)
is NaN, as 0 / 0 is.

A row that fits stays in registers, as a few power-of-two chunks: forward moves x and y once, backward dy, x and dx
once. A longer one is swept twice, the second time backwards so that it meets the cache. No row needs another's results.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from normlib.kernels import plan as plans
from normlib.kernels.host import device_of, on
from normlib.kernels.numerics import accumulator, divide, load, square_root, store
from normlib.kernels.plan import Device
from normlib.kernels.row_norm import plan as row_plan
from normlib.kernels.row_norm.launch import as_rows
from normlib.kernels.row_norm.values import aligned
from normlib.kernels.traffic import Moves, launch

# Arguments that follow the number of rows, which no compilation is to follow.
BATCH = ("M",)


@triton.jit
def power_of_two(size):
    """Returns (scale, 1 / scale) of non-negative sizes: the power of two at or below each, both normal numbers.

    The bits of a float above its fraction are its exponent; those of 1 / scale are the bias twice, less these.
    """
    if size.dtype == tl.float32:
        exponent = tl.minimum(tl.maximum(size.to(tl.int32, bitcast=True) >> 23, 1), 253)
        scale = (exponent << 23).to(tl.float32, bitcast=True)
        inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    else:
        exponent = tl.minimum(tl.maximum(size.to(tl.int64, bitcast=True) >> 52, 1), 2045)
        scale = (exponent << 52).to(tl.float64, bitcast=True)
        inverse = ((2046 - exponent) << 52).to(tl.float64, bitcast=True)
    return scale, inverse


@triton.jit
def save_norm(norm_ptr, row, M, norm, inverse):
    store(norm_ptr + row, norm, row < M)
    store(norm_ptr + M + row, inverse, row < M)


@triton.jit
def load_norm(norm_ptr, row, M, ACC: tl.constexpr):
    """Returns (norm / scale, 1 / scale); past the last row the norm is 1, so that nothing is divided by zero."""
    norm = tl.where(row < M, load(norm_ptr + row, row < M, ACC), 1.0)
    return norm, load(norm_ptr + M + row, row < M, ACC)


@triton.jit(do_not_specialize=BATCH)
def _weight_norm_forward_kernel(
    y_ptr,  # (M, N)
    norm_ptr,  # (2, M): norm / scale, 1 / scale
    x_ptr,  # (M, N), rows x_stride apart
    weight_ptr,  # (M,)
    M,
    x_stride,
    ALIGN: tl.constexpr,
    N: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    x_stride = aligned(x_stride, ALIGN)
    row = (tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]

    xs = ()
    largest = tl.zeros([BLOCK_M, 1], ACC)
    for i in tl.static_range(len(CHUNKS)):
        n = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])[None, :]
        x = load(x_ptr + row * x_stride + n, (row < M) & (n < N), ACC)
        xs = xs + (x,)
        largest = tl.maximum(largest, tl.max(tl.abs(x), 1, keep_dims=True))

    _, inverse = power_of_two(largest)
    squares = tl.zeros([BLOCK_M, 1], ACC)
    for i in tl.static_range(len(CHUNKS)):
        scaled = xs[i] * inverse
        squares += tl.sum(scaled * scaled, 1, keep_dims=True)
    norm = tl.where(row < M, square_root(squares), 1.0)
    save_norm(norm_ptr, row, M, norm, inverse)

    factor = divide(load(weight_ptr + row, row < M, ACC), norm)
    for i in tl.static_range(len(CHUNKS)):
        n = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])[None, :]
        store(y_ptr + row * N + n, xs[i] * inverse * factor, (row < M) & (n < N))


@triton.jit(do_not_specialize=BATCH)
def _weight_norm_forward_loop_kernel(
    y_ptr,
    norm_ptr,
    x_ptr,
    weight_ptr,
    M,
    x_stride,
    ALIGN: tl.constexpr,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    row = tl.program_id(0).to(tl.int64) + tl.zeros([1, 1], tl.int64)
    x_row = x_ptr + row * aligned(x_stride, ALIGN)
    block = tl.arange(0, BLOCK_N)[None, :]

    # Squares so far are of x over the scale so far; a larger one shrinks them, by a power of two.
    scale, inverse = power_of_two(tl.zeros([1, 1], ACC))
    lanes = tl.zeros([1, BLOCK_N], ACC)
    for start in range(0, N, BLOCK_N):
        n = start + block
        x = load(x_row + n, n < N, ACC)
        grown, inverse = power_of_two(tl.maximum(scale, tl.max(tl.abs(x), 1, keep_dims=True)))
        shrunk = scale * inverse
        scaled = x * inverse
        lanes = lanes * (shrunk * shrunk) + scaled * scaled
        scale = grown
    norm = square_root(tl.sum(lanes, 1, keep_dims=True))
    save_norm(norm_ptr, row, M, norm, inverse)

    factor = divide(load(weight_ptr + row, row < M, ACC), norm)
    for i in range(tl.cdiv(N, BLOCK_N)):
        n = (tl.cdiv(N, BLOCK_N) - 1 - i) * BLOCK_N + block
        store(y_ptr + row * N + n, load(x_row + n, n < N, ACC) * inverse * factor, n < N)


@triton.jit(do_not_specialize=BATCH)
def _weight_norm_backward_kernel(
    dx_ptr,  # (M, N) or None
    dw_ptr,  # (M,) or None
    dy_ptr,  # (M, N), rows dy_stride apart
    x_ptr,  # (M, N), rows x_stride apart
    norm_ptr,
    weight_ptr,
    M,
    dy_stride,
    x_stride,
    ALIGN: tl.constexpr,
    N: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    x_stride = aligned(x_stride, ALIGN)
    dy_stride = aligned(dy_stride, ALIGN)
    row = (tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    norm, inverse = load_norm(norm_ptr, row, M, ACC)

    dys = ()
    scaled = ()
    total = tl.zeros([BLOCK_M, 1], ACC)
    for i in tl.static_range(len(CHUNKS)):
        n = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])[None, :]
        mask = (row < M) & (n < N)
        dy = load(dy_ptr + row * dy_stride + n, mask, ACC)
        x = load(x_ptr + row * x_stride + n, mask, ACC) * inverse
        dys = dys + (dy,)
        scaled = scaled + (x,)
        total += tl.sum(dy * x, 1, keep_dims=True)

    dw = divide(total, norm)
    if dw_ptr is not None:
        store(dw_ptr + row, dw, row < M)
    if dx_ptr is not None:
        parallel = divide(dw, norm)
        factor = divide(load(weight_ptr + row, row < M, ACC), norm)
        for i in tl.static_range(len(CHUNKS)):
            n = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])[None, :]
            dx = (dys[i] - scaled[i] * parallel) * factor * inverse
            store(dx_ptr + row * N + n, dx, (row < M) & (n < N))


@triton.jit(do_not_specialize=BATCH)
def _weight_norm_backward_loop_kernel(
    dx_ptr,
    dw_ptr,
    dy_ptr,
    x_ptr,
    norm_ptr,
    weight_ptr,
    M,
    dy_stride,
    x_stride,
    ALIGN: tl.constexpr,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    row = tl.program_id(0).to(tl.int64) + tl.zeros([1, 1], tl.int64)
    dy_row = dy_ptr + row * aligned(dy_stride, ALIGN)
    x_row = x_ptr + row * aligned(x_stride, ALIGN)
    block = tl.arange(0, BLOCK_N)[None, :]
    norm, inverse = load_norm(norm_ptr, row, M, ACC)

    lanes = tl.zeros([1, BLOCK_N], ACC)
    for start in range(0, N, BLOCK_N):
        n = start + block
        lanes += load(dy_row + n, n < N, ACC) * (load(x_row + n, n < N, ACC) * inverse)
    dw = divide(tl.sum(lanes, 1, keep_dims=True), norm)
    if dw_ptr is not None:
        store(dw_ptr + row, dw, row < M)
    if dx_ptr is not None:
        parallel = divide(dw, norm)
        factor = divide(load(weight_ptr + row, row < M, ACC), norm)
        for i in range(tl.cdiv(N, BLOCK_N)):
            n = (tl.cdiv(N, BLOCK_N) - 1 - i) * BLOCK_N + block
            scaled = load(x_row + n, n < N, ACC) * inverse
            dx = (load(dy_row + n, n < N, ACC) - scaled * parallel) * factor * inverse
            store(dx_ptr + row * N + n, dx, n < N)


def forward(x: Tensor, weight: Tensor, device: Device | None = None) -> tuple[Tensor, Tensor]:
    """Returns (y like x but contiguous, norm (2, M)) of x (M, ...), whose rows are x[i], and weight of M."""
    m = len(x)
    n = x.numel() // max(m, 1)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    norm = torch.empty((2, m), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    if x.numel() == 0:
        return y, norm.zero_()
    rows = as_rows(x, n)
    plan = row_plan.row_forward(n, x.element_size(), device or device_of(x))
    stride = rows.stride(0)
    arguments = (y, norm, rows, weight, m, stride)
    constants = {"ALIGN": plans.alignment(stride), "N": n, **plan.options}
    with on(x):
        if plan.chunks:
            launch(
                *(_weight_norm_forward_kernel, (plans.cdiv(m, plan.block_m),), *arguments),
                **constants,
                CHUNKS=plan.chunks,
                BLOCK_M=plan.block_m,
                moves=lambda: Moves(plan, {"x": 1, "weight": 1}, ("y", "norm")),
            )
        else:
            moves = lambda: Moves(plan, {"x": 2, "weight": 1}, ("y", "norm"), again=x.nbytes, span=2 * x.nbytes // m)
            launch(
                *(_weight_norm_forward_loop_kernel, (m,), *arguments), **constants, BLOCK_N=plan.block_n, moves=moves
            )
    return y, norm


def backward(
    dy: Tensor,
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    need_dx: bool,
    need_dw: bool,
    device: Device | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Returns (dx like x but contiguous, dw like weight), None where one is not needed; norm as forward gave it."""
    m = len(x)
    n = x.numel() // max(m, 1)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if need_dx else None
    dw = torch.empty(weight.shape, dtype=weight.dtype, device=x.device) if need_dw else None
    if x.numel() == 0:
        return dx, None if dw is None else dw.zero_()
    x_rows, dy_rows = as_rows(x, n), as_rows(dy, n)
    plan = row_plan.row_backward(m, n, x.element_size(), device or device_of(x), whole=False).rows
    strides = dy_rows.stride(0), x_rows.stride(0)
    arguments = (dx, dw, dy_rows, x_rows, norm, weight, m, *strides)
    constants = {"ALIGN": plans.alignment(*strides), "N": n, **plan.options}
    with on(x):
        if plan.chunks:
            launch(
                *(_weight_norm_backward_kernel, (plans.cdiv(m, plan.block_m),), *arguments),
                **constants,
                CHUNKS=plan.chunks,
                BLOCK_M=plan.block_m,
                moves=lambda: Moves(plan, {"dy": 1, "x": 1, "norm": 1, "weight": int(need_dx)}, ("dx", "dw")),
            )
        else:
            launch(
                *(_weight_norm_backward_loop_kernel, (m,), *arguments),
                **constants,
                BLOCK_N=plan.block_n,
                moves=lambda: Moves(
                    *(plan, {"dy": 1 + need_dx, "x": 1 + need_dx, "norm": 1, "weight": int(need_dx)}, ("dx", "dw")),
                    again=need_dx * 2 * x.nbytes,
                    span=need_dx * 3 * x.nbytes // m,
                ),
            )
    return dx, dw
