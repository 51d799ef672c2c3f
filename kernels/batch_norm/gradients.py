"""The backward pass of batch norm: dz, its sums dw and db, and dx.

    dz = what noise and ReLU let through of dy        dw = sum(dz x_hat)        db = sum(dz)
    dx = weight rstd (dz - db / n - x_hat dw / n)

The sweep for dx goes through the tiles backwards, to meet in cache what the one for the sums loaded last. The symbols
are those of launch.py.
"""

import triton
import triton.language as tl

from normlib.kernels.batch_norm.activation import load_input, load_signs
from normlib.kernels.batch_norm.noise import noise_of_tile
from normlib.kernels.batch_norm.output import normalized
from normlib.kernels.batch_norm.tiles import mask_of_tile, next_tile, offsets_in_tile, previous_tile, start_of_tile
from normlib.kernels.numerics import STAYS, divide, load, store
from normlib.kernels.reduction import accurate_sum, accurate_sum_pair


@triton.jit
def load_gradient(
    dy_ptr,
    signs_ptr,  # of a sum with a residual; or None: then x says which sign it had
    x,
    mean,
    scale,
    shift,
    at,
    mask,
    tile,
    c0,
    C,
    RELU: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ACC: tl.constexpr,
    EVICT: tl.constexpr = STAYS,
    S=None,
    noise=None,  # of load_noise, where there was noise behind the activation
):
    """Returns dz: dy after the derivatives of noise and activation."""
    dy = load(dy_ptr + at, mask, ACC, EVICT)
    if noise is not None:
        factor, _ = noise_of_tile(noise, tile, c0, S, BLOCK_C, BLOCK_S, ACC)
        dy *= factor
    if RELU:
        if signs_ptr is not None:
            blocked = load_signs(signs_ptr, tile, c0, C, LAST, BLOCK_C, BLOCK_S)
        else:
            blocked = normalized(x, mean, scale, shift) <= 0.0
        dy = tl.where(blocked, 0.0, dy)
    return dy


@triton.jit
def store_gradients(dx_ptr, dz_ptr, dx, dz, x, at, mask, PRE_RELU: tl.constexpr, EVICT: tl.constexpr = STAYS):
    """Stores the gradients of x and of a residual, unless their pointer is None."""
    if dz_ptr is not None:
        store(dz_ptr + at, dz, mask, EVICT)
    if dx_ptr is not None:
        if PRE_RELU:
            dx = tl.where(x <= 0.0, 0.0, dx)
        store(dx_ptr + at, dx, mask, EVICT)


@triton.jit
def sums_of_tiles(
    dx_ptr,  # written here in evaluation, where dx needs no sums; or None
    dz_ptr,  # the residual's gradient, written here where no other sweep writes; or None
    dy_ptr,
    signs_ptr,
    x_ptr,
    mean,
    low,
    rstd,
    scale,
    shift,
    first,
    last,
    c0,
    C,
    S,
    SUMS: tl.constexpr,
    RELU: tl.constexpr,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
    noise=None,
):
    """Returns (sum(dz x_hat), sum(dz)) over tiles [first, last), a column each; zeros without SUMS."""
    dw = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    db = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    offsets = offsets_in_tile(C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
    start, s0 = start_of_tile(first, c0, C, S, LAST, ALIGN, BLOCK_S)
    for tile in tl.range(first, last, num_stages=STAGES):
        mask = mask_of_tile(s0, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        at = start + offsets
        if SUMS or (RELU and signs_ptr is None) or (PRE_RELU and dx_ptr is not None):
            x = load_input(x_ptr + at, mask, PRE_RELU, ACC)
        else:
            x = None
        dz = load_gradient(
            dy_ptr, signs_ptr, x, mean, scale, shift, at, mask, tile, c0, C,
            RELU, LAST, BLOCK_C, BLOCK_S, ACC, "", S, noise
        )  # fmt: skip
        if SUMS:
            # Of the mean's two parts the low one is common to all terms, and taken off their sum.
            db += dz
            dw += dz * (x - mean)
        store_gradients(dx_ptr, dz_ptr, dz * scale, dz, x, at, mask, PRE_RELU)
        start, s0 = next_tile(start, s0, C, S, LAST, ALIGN, BLOCK_S)
    dw, db = accurate_sum_pair(dw, db, 1)
    return (dw - low * db) * rstd, db


@triton.jit
def add_splits(partials_ptr, c0, C, splits, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, ACC: tl.constexpr):
    """Returns the sum over splits of one plane (splits, C) of partials, in a fixed order, as a column."""
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    p = tl.arange(0, BLOCK_P)[None, :]
    lanes = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    for start in range(0, splits, BLOCK_P):
        split = start + p
        lanes += load(partials_ptr + split.to(tl.int64) * C + c, (split < splits) & (c < C), ACC)
    return accurate_sum(lanes, 1)


@triton.jit(noinline=True)  # of one program in many: its registers are not to weigh on the others
def store_sums(
    dw_ptr,
    db_ptr,
    partials_ptr,  # (2, splits, C)
    c0,
    C,
    splits,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    """Stores dw and db of a channel group, from the partials of all splits, in a fixed order."""
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    p = tl.arange(0, BLOCK_P)[None, :]
    plane = tl.cast(splits, tl.int64) * C
    dw = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    db = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    for start in range(0, splits, BLOCK_P):
        split = start + p
        mask = (split < splits) & (c < C)
        source = partials_ptr + split.to(tl.int64) * C + c
        dw += load(source, mask, ACC)
        db += load(source + plane, mask, ACC)
    dw, db = accurate_sum_pair(dw, db, 1)
    store(dw_ptr + c, dw, c < C)
    store(db_ptr + c, db, c < C)


@triton.jit
def input_gradient_of_tiles(
    dx_ptr,
    dz_ptr,  # the residual's gradient, or None
    dy_ptr,
    signs_ptr,
    x_ptr,
    mean,
    low,
    rstd,
    scale,
    shift,
    dw,  # sum(dz x_hat)
    db,  # sum(dz)
    n,
    first,
    last,
    c0,
    C,
    S,
    RELU: tl.constexpr,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
    EVICT: tl.constexpr,
    noise=None,
):
    """Stores dx of tiles [first, last) in training, the last one first."""
    # dx = scale (dz - db / n) + (x - mean) slope + rest
    c2 = divide(db, n)
    slope = -scale * divide(dw * rstd, n)
    rest = -low * slope
    offsets = offsets_in_tile(C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
    start, s0 = start_of_tile(last - 1, c0, C, S, LAST, ALIGN, BLOCK_S)
    for i in tl.range(first, last, num_stages=STAGES):
        mask = mask_of_tile(s0, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        at = start + offsets
        x = load_input(x_ptr + at, mask, PRE_RELU, ACC, EVICT)
        dz = load_gradient(
            dy_ptr, signs_ptr, x, mean, scale, shift, at, mask, first + last - 1 - i, c0, C,
            RELU, LAST, BLOCK_C, BLOCK_S, ACC, EVICT, S, noise
        )  # fmt: skip
        dx = scale * (dz - c2) + ((x - mean) * slope + rest)
        store_gradients(dx_ptr, dz_ptr, dx, dz, x, at, mask, PRE_RELU, EVICT)
        start, s0 = previous_tile(start, s0, C, S, LAST, ALIGN, BLOCK_S)
