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
def offsets_in_tile(C, S, LAST: tl.constexpr, ALIGN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    """Returns the int32 offsets of a tile's elements from its first one."""
    c = tl.arange(0, BLOCK_C)[:, None]
    s = tl.arange(0, BLOCK_S)[None, :]
    return s * length(C, ALIGN) + c if LAST else c * length(S, ALIGN) + s


@triton.jit
def length(n, ALIGN: tl.constexpr):
    """Returns the length n of a run. Dividing and multiplying tells the compiler that ALIGN divides it: wide loads."""
    return n // ALIGN * ALIGN


@triton.jit
def mask_of_tile(s0, c0, C, S, LAST: tl.constexpr, ALIGN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    """Returns which elements of the tile that starts at channel c0 and position s0 there are."""
    c = tl.arange(0, BLOCK_C)[:, None]
    s = tl.arange(0, BLOCK_S)[None, :]
    # Of ALIGN neighbours either all are there or none is: they share one comparison.
    if LAST:
        c = length(c, ALIGN)
    else:
        s = length(s, ALIGN)
    return (c < C - c0) & (s < S - s0)


@triton.jit
def start_of_tile(tile, c0, C, S, LAST: tl.constexpr, ALIGN: tl.constexpr, BLOCK_S: tl.constexpr):
    """Returns (int64 offset of the tile's first element, its position in the run)."""
    if LAST:
        s0 = tile * BLOCK_S
        return tl.cast(s0, tl.int64) * length(C, ALIGN) + c0, s0
    else:
        tiles = blocks(S, BLOCK_S)
        s0 = tile % tiles * BLOCK_S
        return (tl.cast(tile // tiles, tl.int64) * C + c0) * length(S, ALIGN) + s0, s0


@triton.jit
def next_tile(start, s0, C, S, LAST: tl.constexpr, ALIGN: tl.constexpr, BLOCK_S: tl.constexpr):
    """Returns the same of the tile after that one, by additions only."""
    if LAST:
        return start + tl.cast(length(C, ALIGN), tl.int64) * BLOCK_S, s0 + BLOCK_S
    else:
        last = (blocks(S, BLOCK_S) - 1) * BLOCK_S
        ends = s0 == last
        image = tl.cast(C, tl.int64) * length(S, ALIGN) - last
        return start + tl.where(ends, image, BLOCK_S), tl.where(ends, 0, s0 + BLOCK_S)


@triton.jit
def previous_tile(start, s0, C, S, LAST: tl.constexpr, ALIGN: tl.constexpr, BLOCK_S: tl.constexpr):
    """Returns the same of the tile before that one."""
    if LAST:
        return start - tl.cast(length(C, ALIGN), tl.int64) * BLOCK_S, s0 - BLOCK_S
    else:
        last = (blocks(S, BLOCK_S) - 1) * BLOCK_S
        begins = s0 == 0
        image = tl.cast(C, tl.int64) * length(S, ALIGN) - last
        return start - tl.where(begins, image, BLOCK_S), tl.where(begins, last, s0 - BLOCK_S)


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
