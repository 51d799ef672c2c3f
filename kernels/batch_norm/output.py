"""The output of batch norm: y = (x - mean) scale + shift, with what is fused before and after it.

The sweep goes through the tiles backwards, to meet in cache what the one before it loaded last. The symbols are those
of launch.py: scale is weight rstd, and shift the bias less scale times the mean's own low part.
"""

import triton
import triton.language as tl

from normlib.kernels.batch_norm.activation import load_input, relu, store_signs
from normlib.kernels.batch_norm.noise import load_noise, noise_of_tile, uniform
from normlib.kernels.batch_norm.tiles import (
    channel_values,
    mask_of_tile,
    offsets_in_tile,
    previous_tile,
    start_of_tile,
)
from normlib.kernels.numerics import STAYS, load, store


@triton.jit
def normalized(x, mean, scale, shift):
    """Returns the norm before any activation. With fma, so that backward, which recomputes it, gets the same sign."""
    return tl.fma(x - mean, scale, shift)


@triton.jit
def scale_of(rstd, weight_ptr, c0, C, BLOCK_C: tl.constexpr, ACC: tl.constexpr):
    if weight_ptr is not None:
        return rstd * channel_values(weight_ptr, c0, C, BLOCK_C, ACC)
    else:
        return rstd


@triton.jit
def shift_of(bias_ptr, low, scale, c0, C, BLOCK_C: tl.constexpr, ACC: tl.constexpr):
    if bias_ptr is not None:
        return tl.fma(-low, scale, channel_values(bias_ptr, c0, C, BLOCK_C, ACC))
    else:
        return -low * scale


@triton.jit
def store_output(
    y_ptr,
    signs_ptr,  # where signs are kept for backward, or None
    residual_ptr,  # added before the activation, or None
    x,
    mean,
    scale,
    shift,
    tile,
    at,
    mask,
    c0,
    C,
    RELU: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ACC: tl.constexpr,
    EVICT: tl.constexpr = STAYS,
    S=None,
    noise=None,  # (that of load_noise, least, width), or None: no noise
):
    """Stores y of one tile of x."""
    y = normalized(x, mean, scale, shift)
    if residual_ptr is not None:
        y += load(residual_ptr + at, mask, ACC, EVICT)
    if signs_ptr is not None:
        store_signs(signs_ptr, y <= 0.0, tile, c0, C, LAST, BLOCK_C, BLOCK_S)
    if RELU:
        y = relu(y)
    if noise is not None:
        factors, least, width = noise
        factor, word = noise_of_tile(factors, tile, c0, S, BLOCK_C, BLOCK_S, ACC)
        y = tl.fma(factor, y, least + width * uniform(word, ACC))
    store(y_ptr + at, y, mask, EVICT)


@triton.jit
def normalize_tiles(
    y_ptr,
    signs_ptr,  # where signs are kept for backward, or None
    x_ptr,
    residual_ptr,  # added before the activation, or None
    mean,
    scale,
    shift,
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
    noise_ptr=None,  # (4, C), see load_noise; or None: no noise
    seed_ptr=None,  # (), the noise's
):
    """Stores y of tiles [first, last), the last one first."""
    if noise_ptr is not None:
        factors = load_noise(noise_ptr, seed_ptr, c0, C, BLOCK_C, ACC)
        least = channel_values(noise_ptr + 2 * tl.cast(C, tl.int64), c0, C, BLOCK_C, ACC)
        width = channel_values(noise_ptr + 3 * tl.cast(C, tl.int64), c0, C, BLOCK_C, ACC)
        noise = (factors, least, width)
    else:
        noise = None
    offsets = offsets_in_tile(C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
    start, s0 = start_of_tile(last - 1, c0, C, S, LAST, ALIGN, BLOCK_S)
    for i in tl.range(first, last, num_stages=STAGES):
        mask = mask_of_tile(s0, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        at = start + offsets
        x = load_input(x_ptr + at, mask, PRE_RELU, ACC, EVICT)
        store_output(
            y_ptr, signs_ptr, residual_ptr, x, mean, scale, shift, first + last - 1 - i, at, mask, c0, C,
            RELU, LAST, BLOCK_C, BLOCK_S, ACC, EVICT, S, noise
        )  # fmt: skip
        start, s0 = previous_tile(start, s0, C, S, LAST, ALIGN, BLOCK_S)
