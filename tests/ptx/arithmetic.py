"""Operations that NumPy lacks. Arithmetic is IEEE's, and denormals are kept."""

import numpy as np

U1, U2, U4, U8 = np.uint8, np.uint16, np.uint32, np.uint64
RAW = {1: U1, 2: U2, 4: U4, 8: U8}


def fma32(a, b, c):
    """a b + c, rounded once."""
    product = a.astype(np.float64) * b
    total = product + c
    bits = np.asarray(total).view(np.int64)
    small = np.abs(total) < 1.2e-38
    if ((bits & 0x1FFFFFFF) == 0x10000000).any() or small.any():  # a tie may have been made by the first rounding
        c = np.broadcast_to(np.asarray(c, dtype=np.float64), total.shape)
        part = total - product
        error = (product - (total - part)) + (c - part)
        wrong = (error != 0) & np.isfinite(total) & ((bits & 1) == 0) & np.isfinite(error)
        bits = np.where(wrong, np.where((error > 0) == (total > 0), bits + 1, bits - 1), bits)  # round to odd
        total = bits.view(np.float64)
    return total.astype(np.float32)


def fma64(a, b, c):
    """a b + c with the product's error, by Veltkamp's splitting: as good as rounded once."""
    product = a * b
    a_high, b_high = (x * 134217729.0 - (x * 134217729.0 - x) for x in (a, b))
    error = (a_high * b_high - product) + a_high * (b - b_high) + (a - a_high) * b_high
    error = error + (a - a_high) * (b - b_high)
    total = product + c
    part = total - product
    exact = total + ((product - (total - part)) + (c - part) + error)
    return np.where(np.isfinite(exact), exact, total)


def to_bf16(x):
    bits = np.ascontiguousarray(x).view(U4)
    rounded = (bits + U4(0x7FFF) + ((bits >> U4(16)) & U4(1))) >> U4(16)
    return np.where(np.isnan(x), U4(0x7FFF), rounded).astype(U2)


def from_bf16(x):
    return (x.astype(U4) << U4(16)).view(np.float32)


def bf16(operation, a, b):
    """Of uint16: as float32 rounded once more, for 24 bits are more than 2 x 8 + 1."""
    return to_bf16(operation(from_bf16(a), from_bf16(b)))


def bf16x2(operation, a, b):
    return bf16(operation, a.view(U2), b.view(U2)).view(U4)


def f16x2(operation, a, b):
    return operation(a.view(np.float16), b.view(np.float16)).view(U4)


def divided(a, b, remainder):
    """Quotient towards zero, or the remainder; what a division by zero gives is undefined."""
    b = np.where(b == 0, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        return a % b if remainder else a // b
    q = (np.abs(a.astype(np.int64)) // np.abs(b.astype(np.int64))) * (np.sign(a) * np.sign(b)).astype(np.int64)
    return (a - q * b if remainder else q).astype(a.dtype)


def to_int(x, dtype, mode):
    """Of a float, saturated."""
    x = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[mode](x.astype(np.float64))
    info = np.iinfo(dtype)
    return np.where(np.isnan(x), 0, np.clip(x, float(info.min), float(info.max))).astype(dtype)


def high_product(a, b):
    """The upper half of a product of 32 or 64 bits."""
    a, b = np.broadcast_arrays(a, b)
    bits = 8 * a.dtype.itemsize
    if bits == 64:
        return np.array([(int(x) * int(y)) >> 64 for x, y in zip(a, b, strict=True)], dtype=a.dtype)
    wide = np.int64 if a.dtype.kind == "i" else U8
    return ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(a.dtype)


def permuted(a, b, selectors):
    """As prmt: four bytes out of the eight of b and a, or their signs."""
    a, b, selectors = np.broadcast_arrays(a, b, selectors)
    whole, out = a.astype(U8) | (b.astype(U8) << U8(32)), np.zeros(a.shape, U4)
    for k in range(4):
        selector = (selectors >> U4(4 * k)) & U4(0xF)
        byte = ((whole >> ((selector & U4(7)) * U4(8)).astype(U8)) & U8(0xFF)).astype(U4)
        byte = np.where(selector & U4(8), np.where(byte & U4(0x80), U4(0xFF), U4(0)), byte)
        out |= byte << U4(8 * k)
    return out


def looked_up(a, b, c, table):
    """As lop3: a function of three bits, given as its table of truth."""
    out = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), U4)
    for k in range(8):
        if table >> k & 1:
            out |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    return out


def approximate(value, ulps):
    """Off by up to so many units, the same for the same value: threads that hold copies have to agree."""
    mixed = value.view(RAW[value.dtype.itemsize]).astype(U8) * U8(0x9E3779B97F4A7C15) + U8(12345)
    mixed = (mixed ^ (mixed >> U8(29))) * U8(0xBF58476D1CE4E5B9)
    off = ulps * ((mixed >> U8(40)).astype(np.float64) / (1 << 23) - 1) * np.spacing(np.abs(value))
    moved = (value.astype(np.float64) + off).astype(value.dtype)
    return np.where(np.isfinite(moved), moved, value)
