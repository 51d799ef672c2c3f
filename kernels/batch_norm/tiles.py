"""The addresses of a channel group's tiles, and of the results of each split.

A channel group is BLOCK_C channels; its tiles, BLOCK_S positions each, are dealt to splits, a program each (plan.py).
The symbols are those of launch.py.
"""

import triton
import triton.language as tl

from normlib.kernels.numerics import blocks, load, store

# Arguments that follow the batch size: no compilation of their own for a 1 or a multiple of 16.
BATCH = ("S", "tiles", "splits", "lag")


@triton.jit
def elements_before(tile, S, BLOCK_S):
    """Returns the number of elements of one channel in the tiles before this one."""
    tiles = blocks(S, BLOCK_S)
    return (tile // tiles).to(tl.int64) * S + tl.minimum((tile % tiles) * BLOCK_S, S)


@triton.jit
def addresses(tile, c0, C, S, LAST: tl.constexpr, ALIGN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    """Returns (scalar int64 offset of the tile, int32 offsets inside it, mask, elements of a channel in it)."""
    tiles = blocks(S, BLOCK_S)
    batch = (tile // tiles).to(tl.int64)
    s0 = (tile % tiles) * BLOCK_S
    c = tl.arange(0, BLOCK_C)[:, None]
    s = tl.arange(0, BLOCK_S)[None, :]
    # Dividing and multiplying tells the compiler that runs start and end at multiples of ALIGN: loads that wide.
    if LAST:
        C = C // ALIGN * ALIGN
        base = s0.to(tl.int64) * C + c0
        offsets = s * C + c
    else:
        S = S // ALIGN * ALIGN
        base = (batch * C + c0) * S + s0
        offsets = c * S + s
    mask = (c0 + c < C) & (s0 + s < S)
    return base, offsets, mask, tl.minimum(BLOCK_S, S - s0)


@triton.jit
def channel_values(pointer, c0, C, BLOCK_C: tl.constexpr, ACC: tl.constexpr):
    """Returns a per-channel vector's values for this channel group, as a column; zeros past the last channel."""
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    return load(pointer + c, c < C, ACC)


@triton.jit
def store_planes(partials_ptr, split, splits, c0, C, first, second, third, BLOCK_C: tl.constexpr):
    """Stores one split's results, a column each, into partials (2 or 3, splits, C); third may be None."""
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    out = partials_ptr + split.to(tl.int64) * C + c
    plane = tl.cast(splits, tl.int64) * C
    store(out, first, c < C)
    store(out + plane, second, c < C)
    if third is not None:
        store(out + 2 * plane, third, c < C)
