"""The kernels of weight norm; launch.py has the formulas."""

import triton
import triton.language as tl

from normlib.kernels.numerics import accumulator, divide, load, square_root, store
from normlib.kernels.row_norm.values import aligned

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
    BLOCK_N: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    x_stride = aligned(x_stride, ALIGN)
    row = (tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]

    xs = ()
    largest = tl.zeros([BLOCK_M, 1], ACC)
    for i in tl.static_range(CHUNKS):
        n = i * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        x = load(x_ptr + row * x_stride + n, (row < M) & (n < N), ACC)
        xs = xs + (x,)
        largest = tl.maximum(largest, tl.max(tl.abs(x), 1, keep_dims=True))

    _, inverse = power_of_two(largest)
    squares = tl.zeros([BLOCK_M, 1], ACC)
    for i in tl.static_range(CHUNKS):
        scaled = xs[i] * inverse
        squares += tl.sum(scaled * scaled, 1, keep_dims=True)
    norm = tl.where(row < M, square_root(squares), 1.0)
    save_norm(norm_ptr, row, M, norm, inverse)

    factor = divide(load(weight_ptr + row, row < M, ACC), norm)
    for i in tl.static_range(CHUNKS):
        n = i * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
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
    BLOCK_N: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    x_stride = aligned(x_stride, ALIGN)
    dy_stride = aligned(dy_stride, ALIGN)
    row = (tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    norm, inverse = load_norm(norm_ptr, row, M, ACC)

    dys = ()
    scaled = ()
    total = tl.zeros([BLOCK_M, 1], ACC)
    for i in tl.static_range(CHUNKS):
        n = i * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
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
        for i in tl.static_range(CHUNKS):
            n = i * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
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
