"""Device functions of the row norms: loads, saved statistics, weight and bias. launch.py explains the symbols."""

import triton
import triton.language as tl

from normlib.kernels.numerics import load, load_narrow, round_to, store, widen


@triton.jit
def aligned(stride, ALIGN: tl.constexpr):
    """Returns the stride in a form that tells the compiler that rows start at multiples of ALIGN: loads that wide."""
    return stride // ALIGN * ALIGN


@triton.jit
def save_statistics(mean_ptr, rstd_ptr, row, M, mean, low, rstd, CENTRED: tl.constexpr):
    store(rstd_ptr + row, rstd, row < M)
    if CENTRED:
        store(mean_ptr + row, mean, row < M)
        store(mean_ptr + M + row, low, row < M)


@triton.jit
def load_statistics(mean_ptr, rstd_ptr, row, M, CENTRED: tl.constexpr, ACC: tl.constexpr):
    """Returns (mean, low, rstd); zeros past the last row, so that such a row adds nothing to dw."""
    rstd = load(rstd_ptr + row, row < M, ACC)
    if CENTRED:
        return load(mean_ptr + row, row < M, ACC), load(mean_ptr + M + row, row < M, ACC), rstd
    else:
        return 0.0, 0.0, rstd


@triton.jit
def load_row(row_ptr, row, block, M, N: tl.constexpr, CHUNKS: tl.constexpr, EVEN: tl.constexpr = False):
    """Returns a row's chunks in its own dtype; `block` has the first one's columns, and EVEN says that all are full."""
    chunks = ()
    for i in tl.static_range(CHUNKS):
        n = i * block.shape[-1] + block
        chunks = chunks + (load_narrow(row_ptr + n, (row < M) & ((n < N) | EVEN)),)
    return chunks


@triton.jit
def load_stream(x, residual_ptr, residual_row, z_ptr, z_row, n, mask, ACC: tl.constexpr):
    """Returns what is normalized: x, or z = x + residual, which is stored too."""
    x = load(x, mask, ACC)
    if residual_ptr is not None:
        x = widen(round_to(x + load(residual_ptr + residual_row + n, mask, ACC), z_ptr.dtype.element_ty), ACC)
        store(z_ptr + z_row + n, x, mask)
    return x


@triton.jit
def of_part(value, n, N: tl.constexpr, PARTIAL_N: tl.constexpr):
    """Returns the value in the columns that the statistic is of, and zero in the others."""
    return tl.where(n < PARTIAL_N, value, 0.0) if PARTIAL_N < N else value


@triton.jit
def affine(x_hat, weight_ptr, bias_ptr, n, mask, ZERO_CENTRED: tl.constexpr, ACC: tl.constexpr):
    if weight_ptr is not None:
        weight = load(weight_ptr + n, mask, ACC)
        if ZERO_CENTRED:
            weight += 1.0
        x_hat *= weight
    if bias_ptr is not None:
        x_hat += load(bias_ptr + n, mask, ACC)
    return x_hat
