"""What the kernels of batch norm are made of: sweeps over a channel group's tiles, and the merging of their results.

A channel group is BLOCK_C channels; its tiles, BLOCK_S positions each, are dealt to splits, a program each. Every plan
(plan.py) is these functions in another order: all of a sweep in one launch, or statistics, merge and second sweep of a
channel group in one. Second sweeps go through the tiles backwards, to meet in cache what the first one loaded last.
The symbols are those of batch_norm.py.
"""

import triton
import triton.language as tl

from normlib.kernels.noise import ELEMENTS, standard_normal, uniform, words
from normlib.kernels.numerics import STAYS, blocks, divide, even_share, from_pair, load, store
from normlib.kernels.reduction import (
    accurate_sum,
    is_finite,
    merge_all_moments,
    merge_moments,
    rstd_of,
    rstd_of_norm,
    tile_moments,
)


@triton.jit
def elements_before(tile, S, BLOCK_S):
    """Elements of one channel in the tiles before this one."""
    tiles = blocks(S, BLOCK_S)
    return (tile // tiles).to(tl.int64) * S + tl.minimum((tile % tiles) * BLOCK_S, S)


@triton.jit
def addresses(tile, c0, C, S, LAST: tl.constexpr, ALIGN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    """(scalar int64 offset of the tile, int32 offsets inside it, mask, elements of a channel in it)."""
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
    """A per-channel vector's values for this channel group, as a column; zeros past the last channel."""
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    return load(pointer + c, c < C, ACC)


# -------------------------------------------------------------------------------------------------- the activation
#
# What an activation lets through is asked for with `<= 0`, of which NaN is neither: as in PyTorch it stays NaN forward,
# and lets gradients through backward.


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
def normalized(x, mean, low, scale, shift):
    """The norm before any activation. Backward computes it again, and a rounding less would be another sign: so fma."""
    return tl.fma((x - mean) - low, scale, shift)


@triton.jit
def sign_addresses(signs_ptr, tile, c0, C, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, LANES: tl.constexpr):
    """Where a tile's signs lie: bytes of LANES bits each, a tile's side by side."""
    BYTES: tl.constexpr = BLOCK_C * BLOCK_S // LANES
    place = tl.cast(tile, tl.int64) * blocks(C, BLOCK_C) + c0 // BLOCK_C
    return signs_ptr + place * BYTES + tl.arange(0, BYTES)


@triton.jit
def store_signs(signs_ptr, blocked, tile, c0, C, LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    """One bit an element, whether the activation blocks it; a byte's elements are neighbours in memory."""
    LANES: tl.constexpr = min(8, BLOCK_C * BLOCK_S)
    if LAST:
        blocked = tl.trans(blocked)
    bits = tl.reshape(blocked.to(tl.int32), [BLOCK_C * BLOCK_S // LANES, LANES]) << tl.arange(0, LANES)[None, :]
    addresses = sign_addresses(signs_ptr, tile, c0, C, BLOCK_C, BLOCK_S, LANES)
    tl.store(addresses, tl.sum(bits, 1).to(tl.uint8))


@triton.jit
def load_signs(signs_ptr, tile, c0, C, LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    """What store_signs stored, as a tile of booleans."""
    LANES: tl.constexpr = min(8, BLOCK_C * BLOCK_S)
    packed = tl.load(sign_addresses(signs_ptr, tile, c0, C, BLOCK_C, BLOCK_S, LANES)).to(tl.int32)
    bits = (packed[:, None] >> tl.arange(0, LANES)[None, :]) & 1
    if LAST:
        return tl.trans(tl.reshape(bits, [BLOCK_S, BLOCK_C])) != 0
    else:
        return tl.reshape(bits, [BLOCK_C, BLOCK_S]) != 0


# ------------------------------------------------------------------------------------------------------ statistics


@triton.jit
def moments_of_tiles(
    x_ptr,
    first,
    last,
    c0,
    C,
    S,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ACC: tl.constexpr,
):
    """(mean, low, M2) of tiles [first, last): a column each."""
    NARROW: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth == 16
    count = tl.zeros([1, 1], ACC)
    mean = tl.zeros([BLOCK_C, 1], ACC)
    low = tl.zeros([BLOCK_C, 1], ACC)
    m2 = tl.zeros([BLOCK_C, 1], ACC)
    for tile in range(first, last):
        base, offsets, mask, elements = addresses(tile, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        x = load_input(x_ptr + base + offsets, mask, PRE_RELU, ACC)
        tile_count = elements.to(ACC)
        tile_mean, tile_low, tile_m2 = tile_moments(x, mask, tile_count, 1, NARROW)
        count, mean, low, m2 = merge_moments(count, mean, low, m2, tile_count, tile_mean, tile_low, tile_m2)
    # Beside an infinite mean low is NaN; what adds the two must find that infinity.
    return mean, tl.where(is_finite(low), low, 0.0), m2


@triton.jit
def store_planes(partials_ptr, split, splits, c0, C, first, second, third, BLOCK_C: tl.constexpr):
    """One split's results, a column each, into partials (2 or 3, splits, C); third may be None."""
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    out = partials_ptr + split.to(tl.int64) * C + c
    plane = tl.cast(splits, tl.int64) * C
    store(out, first, c < C)
    store(out + plane, second, c < C)
    if third is not None:
        store(out + 2 * plane, third, c < C)


@triton.jit
def merge_splits(
    partials_ptr,
    c0,
    C,
    S,
    tiles,
    splits,
    BLOCK_C: tl.constexpr,
    BLOCK_S,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
    HAS_M2: tl.constexpr = True,
):
    """(mean, low, M2) of BLOCK_C channels from the partials (3, splits, C) of all splits, in a fixed order.

    Without HAS_M2 there are two planes of those, and M2 is not to be used.
    """
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    p = tl.arange(0, BLOCK_P)[None, :]
    plane = tl.cast(splits, tl.int64) * C

    # Lane p of a channel takes splits p, p + BLOCK_P, ...; then the lanes are merged at once.
    count = tl.zeros([1, BLOCK_P], ACC)
    mean = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    low = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    m2 = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    for start in range(0, splits, BLOCK_P):
        split = start + p
        mask = (split < splits) & (c < C)
        first, last = even_share(split, splits, tiles)
        elements = elements_before(last, S, BLOCK_S) - elements_before(first, S, BLOCK_S)
        split_count = tl.where(split < splits, elements, 0).to(ACC)
        source = partials_ptr + split.to(tl.int64) * C + c
        count, mean, low, m2 = merge_moments(
            count,
            mean,
            low,
            m2,
            split_count,
            load(source, mask, ACC),
            load(source + plane, mask, ACC),
            load(source + 2 * plane, mask, ACC) if HAS_M2 else tl.zeros_like(low),
        )
    n = elements_before(tiles, S, BLOCK_S).to(ACC)
    first_mean = tl.sum(tl.where(p == 0, mean, 0.0), 1, keep_dims=True)
    return merge_all_moments(count, mean, low, m2, p < splits, n, first_mean, 1)


@triton.jit
def finish_statistics(
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,  # (C,)
    running_mean_ptr,  # (C,), updated in place, or None
    running_var_ptr,  # (C,), updated in place, or None
    mean,
    low,
    m2,
    n,
    mine,  # whether this program is the one that stores
    c0,
    C,
    eps,
    eps_low,
    momentum,
    momentum_low,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """rstd of a channel group, from the moments of all its n elements; one program leaves all that is kept."""
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    mask = (c < C) & mine
    rstd = rstd_of(divide(m2, n), eps, eps_low, ACC)
    store(mean_ptr + c, mean, mask)
    store(mean_ptr + C + c, low, mask)
    store(rstd_ptr + c, rstd, mask)
    if running_mean_ptr is not None:
        # In float64: these few values are kept for the whole of a training, and go through three roundings otherwise.
        m = from_pair(momentum, momentum_low, tl.float64)
        old_mean = load(running_mean_ptr + c, mask, tl.float64)
        old_var = load(running_var_ptr + c, mask, tl.float64)
        new_mean = mean.to(tl.float64) + low.to(tl.float64)
        unbiased = m2.to(tl.float64) / (n.to(tl.float64) - 1.0)
        store(running_mean_ptr + c, (old_mean * (1.0 - m) + new_mean * m).to(ACC), mask)
        store(running_var_ptr + c, (old_var * (1.0 - m) + unbiased * m).to(ACC), mask)
    return rstd


@triton.jit
def statistics(
    mean_ptr,
    rstd_ptr,
    eps,
    eps_low,
    c0,
    C,
    EVAL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
    P: tl.constexpr = None,
    STD: tl.constexpr = False,
):
    """(mean, low, rstd) of a channel group: as saved, or in evaluation from running_mean and running_var.

    With P, the order of a norm (lp_norm.py), from running_mean and running_norm; with STD from running_mean and a
    running standard deviation, to which no eps is to be added.
    """
    mean = channel_values(mean_ptr, c0, C, BLOCK_C, ACC)
    if EVAL and P is not None:
        norm = channel_values(rstd_ptr, c0, C, BLOCK_C, ACC)
        return mean, tl.zeros_like(mean), rstd_of_norm(norm, eps, eps_low, P, ACC)
    elif EVAL and STD:
        std = channel_values(rstd_ptr, c0, C, BLOCK_C, ACC)
        c = c0 + tl.arange(0, BLOCK_C)[:, None]
        std = tl.where(c < C, std, 1.0)
        return mean, tl.zeros_like(mean), divide(tl.full([BLOCK_C, 1], 1.0, ACC), std)
    elif EVAL:
        variance = channel_values(rstd_ptr, c0, C, BLOCK_C, ACC)
        return mean, tl.zeros_like(mean), rstd_of(variance, eps, eps_low, ACC)
    else:
        low = channel_values(mean_ptr + C, c0, C, BLOCK_C, ACC)
        return mean, low, channel_values(rstd_ptr, c0, C, BLOCK_C, ACC)


# ------------------------------------------------------------------------------------------------------ the output


@triton.jit
def scale_of(rstd, weight_ptr, c0, C, BLOCK_C: tl.constexpr, ACC: tl.constexpr):
    if weight_ptr is not None:
        return rstd * channel_values(weight_ptr, c0, C, BLOCK_C, ACC)
    else:
        return rstd


@triton.jit
def shift_of(bias_ptr, c0, C, BLOCK_C: tl.constexpr, ACC: tl.constexpr):
    if bias_ptr is not None:
        return channel_values(bias_ptr, c0, C, BLOCK_C, ACC)
    else:
        return tl.zeros([BLOCK_C, 1], ACC)


@triton.jit
def normalize_tiles(
    y_ptr,
    signs_ptr,  # where signs are kept for backward, or None
    x_ptr,
    residual_ptr,  # added before the activation, or None
    mean,
    low,
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
    ACC: tl.constexpr,
    EVICT: tl.constexpr,
    noise_ptr=None,  # (4, C), see load_noise; or None: no noise
    seed_ptr=None,  # (), the noise's
):
    """y of tiles [first, last), the last one first."""
    if noise_ptr is not None:
        scale_noise = load_noise(noise_ptr, seed_ptr, c0, C, BLOCK_C, ACC)
        least = channel_values(noise_ptr + 2 * tl.cast(C, tl.int64), c0, C, BLOCK_C, ACC)
        width = channel_values(noise_ptr + 3 * tl.cast(C, tl.int64), c0, C, BLOCK_C, ACC)
    for i in range(first, last):
        tile = first + last - 1 - i
        base, offsets, mask, _ = addresses(tile, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        x = load_input(x_ptr + base + offsets, mask, PRE_RELU, ACC, EVICT)
        y = normalized(x, mean, low, scale, shift)
        if residual_ptr is not None:
            y += load(residual_ptr + base + offsets, mask, ACC, EVICT)
        if signs_ptr is not None:
            store_signs(signs_ptr, y <= 0.0, tile, c0, C, LAST, BLOCK_C, BLOCK_S)
        if RELU:
            y = relu(y)
        if noise_ptr is not None:
            factor, word = noise_of_tile(scale_noise, tile, c0, S, BLOCK_C, BLOCK_S, ACC)
            y = tl.fma(factor, y, least + width * uniform(word, ACC))
        store(y_ptr + base + offsets, y, mask, EVICT)


# ------------------------------------------------------------------------------------------------------- the noise


@triton.jit
def load_noise(noise_ptr, seed_ptr, c0, C, BLOCK_C: tl.constexpr, ACC: tl.constexpr):
    """What an element's factor is drawn by: (seed, mean, deviation), of a channel each.

    They lie as (4, C): mean and deviation of the factors, and least value and width of what is added.
    """
    mean = channel_values(noise_ptr, c0, C, BLOCK_C, ACC)
    return tl.load(seed_ptr), mean, channel_values(noise_ptr + C, c0, C, BLOCK_C, ACC)


@triton.jit
def noise_of_tile(noise, tile, c0, S, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, ACC: tl.constexpr):
    """(each element's factor, a word that is left for what is added to it)."""
    seed, mean, deviation = noise
    position = elements_before(tile, S, BLOCK_S) + tl.arange(0, BLOCK_S)[None, :]
    channel = c0 + tl.arange(0, BLOCK_C)[:, None]
    radius, angle, rest, _ = words(seed, position, channel, ELEMENTS)
    return mean + deviation * standard_normal(radius, angle, ACC), rest


# ---------------------------------------------------------------------------------------------------- the gradients


@triton.jit
def load_gradient(
    dy_ptr,
    signs_ptr,  # of a sum with a residual; or None: then x says which sign it had
    x,
    mean,
    low,
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
    """dz: what noise and activation let through of dy."""
    dy = load(dy_ptr + at, mask, ACC, EVICT)
    if noise is not None:
        factor, _ = noise_of_tile(noise, tile, c0, S, BLOCK_C, BLOCK_S, ACC)
        dy *= factor
    if RELU:
        if signs_ptr is not None:
            blocked = load_signs(signs_ptr, tile, c0, C, LAST, BLOCK_C, BLOCK_S)
        else:
            blocked = normalized(x, mean, low, scale, shift) <= 0.0
        dy = tl.where(blocked, 0.0, dy)
    return dy


@triton.jit
def store_gradients(dx_ptr, dz_ptr, dx, dz, x, at, mask, PRE_RELU: tl.constexpr, EVICT: tl.constexpr = STAYS):
    """The gradients of x and of a residual, where there is a place for them."""
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
    ACC: tl.constexpr,
    noise=None,
):
    """(sum(dz x_hat), sum(dz)) over tiles [first, last), a column each; zeros without SUMS."""
    dw = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    db = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    for tile in range(first, last):
        base, offsets, mask, _ = addresses(tile, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        at = base + offsets
        if SUMS or (RELU and signs_ptr is None) or (PRE_RELU and dx_ptr is not None):
            x = load_input(x_ptr + at, mask, PRE_RELU, ACC)
        else:
            x = None
        dz = load_gradient(
            dy_ptr, signs_ptr, x, mean, low, scale, shift, at, mask, tile, c0, C,
            RELU, LAST, BLOCK_C, BLOCK_S, ACC, "", S, noise
        )  # fmt: skip
        if SUMS:
            db += dz
            dw += tl.where(mask, dz * ((x - mean) - low), 0.0)
        store_gradients(dx_ptr, dz_ptr, dz * scale, dz, x, at, mask, PRE_RELU)
    return accurate_sum(dw, 1) * rstd, accurate_sum(db, 1)


@triton.jit
def add_splits(partials_ptr, c0, C, splits, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, ACC: tl.constexpr):
    """The sum over splits of one plane (splits, C) of partials, in a fixed order, as a column."""
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    p = tl.arange(0, BLOCK_P)[None, :]
    lanes = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    for start in range(0, splits, BLOCK_P):
        split = start + p
        lanes += load(partials_ptr + split.to(tl.int64) * C + c, (split < splits) & (c < C), ACC)
    return accurate_sum(lanes, 1)


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
    ACC: tl.constexpr,
    EVICT: tl.constexpr,
    noise=None,
):
    """dx of tiles [first, last) in training, the last one first."""
    c1 = divide(dw * rstd, n)
    c2 = divide(db, n)
    for i in range(first, last):
        tile = first + last - 1 - i
        base, offsets, mask, _ = addresses(tile, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        at = base + offsets
        x = load_input(x_ptr + at, mask, PRE_RELU, ACC, EVICT)
        dz = load_gradient(
            dy_ptr, signs_ptr, x, mean, low, scale, shift, at, mask, tile, c0, C,
            RELU, LAST, BLOCK_C, BLOCK_S, ACC, EVICT, S, noise
        )  # fmt: skip
        dx = scale * ((dz - c2) - ((x - mean) - low) * c1)
        store_gradients(dx_ptr, dz_ptr, dx, dz, x, at, mask, PRE_RELU, EVICT)
