"""ReLUs before and after batch norm, and the sign bits that backward needs of one after a residual.

What an activation lets through is asked for with `<= 0`, of which NaN is neither: as in PyTorch it stays NaN forward,
and lets gradients through backward.
"""

import triton
import triton.language as tl

from normlib.kernels.numerics import STAYS, blocks, load


@triton.jit
def relu(x):
    return tl.where(x <= 0.0, 0.0, x)


@triton.jit
def load_input(pointer, mask, PRE_RELU: tl.constexpr, ACC: tl.constexpr, EVICT: tl.constexpr = STAYS):
    x = load(pointer, mask, ACC, EVICT)
    if PRE_RELU:
        x = relu(x)
    return x


@triton.jit
def sign_addresses(signs_ptr, tile, c0, C, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, LANES: tl.constexpr):
    """Returns the addresses of a tile's signs: bytes of LANES bits each, a tile's side by side."""
    BYTES: tl.constexpr = BLOCK_C * BLOCK_S // LANES
    place = tl.cast(tile, tl.int64) * blocks(C, BLOCK_C) + c0 // BLOCK_C
    return signs_ptr + place * BYTES + tl.arange(0, BYTES)


@triton.jit
def store_signs(signs_ptr, blocked, tile, c0, C, LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    """Stores one bit an element, whether the activation blocks it; a byte's elements are neighbours in memory."""
    LANES: tl.constexpr = min(8, BLOCK_C * BLOCK_S)
    if LAST:
        blocked = tl.trans(blocked)
    bits = tl.reshape(blocked.to(tl.int32), [BLOCK_C * BLOCK_S // LANES, LANES]) << tl.arange(0, LANES)[None, :]
    addresses = sign_addresses(signs_ptr, tile, c0, C, BLOCK_C, BLOCK_S, LANES)
    tl.store(addresses, tl.sum(bits, 1).to(tl.uint8))


@triton.jit
def load_signs(signs_ptr, tile, c0, C, LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    """Returns what store_signs stored, as a tile of booleans."""
    LANES: tl.constexpr = min(8, BLOCK_C * BLOCK_S)
    addresses = sign_addresses(signs_ptr, tile, c0, C, BLOCK_C, BLOCK_S, LANES)
    packed = tl.load(addresses).to(tl.int32)
    bits = (packed[:, None] >> tl.arange(0, LANES)[None, :]) & 1
    if LAST:
        return tl.trans(tl.reshape(bits, [BLOCK_S, BLOCK_C])) != 0
    else:
        return tl.reshape(bits, [BLOCK_C, BLOCK_S]) != 0
