"""Noise that is the same wherever it is drawn: Philox4x32-10 (Salmon et al. 2011) of a seed and an element's index.

An element's words, 32 random bits each, follow from the seed, its position in its channel, counted over the batch and
all positions, and the channel. So no layout, plan or grid changes them, and backward draws again what forward drew. A
word's upper 24 bits over 2^24 are u in [0, 1), exact in float32, and two of them make (Box and Muller 1958)

    z = sqrt(-2 ln(u1 + 2^-24)) cos(2 pi u2)

The cosine is a sine of t in [-1/4, 1/4] turns, t being exact, by its Taylor series: large angles need no reduction,
whose code would take a stack, and every device does the same operations. What the series leaves out is below
(pi / 2)^15 / 15! = 7e-10 in float32 and (pi / 2)^23 / 23! = 2e-18 in float64.
"""

import triton
import triton.language as tl

from normlib.kernels.batch_norm.tiles import channel_values, elements_before

# What is drawn: for each element, or for each channel (or all of them). A counter's fourth word.
ELEMENTS = tl.constexpr(0)
UNITS = tl.constexpr(1)


@triton.jit
def words(seed, position, channel, STREAM: tl.constexpr):
    """Returns four words for each position (int64) of each channel (int32), which broadcast against each other."""
    channel = channel.to(tl.uint32)
    low, high = position.to(tl.uint32), (position >> 32).to(tl.uint32)
    return tl.philox(seed, low, high, channel, channel * 0 + STREAM)


@triton.jit
def uniform(word, ACC: tl.constexpr):
    """Returns uniform numbers in [0, 1)."""
    return (word >> 8).to(ACC) * 2.0**-24


@triton.jit
def standard_normal(radius_word, angle_word, ACC: tl.constexpr):
    """Returns normal numbers of mean 0 and variance 1."""
    NARROW: tl.constexpr = ACC.primitive_bitwidth == 32
    TERMS: tl.constexpr = 6 if NARROW else 10
    radius = tl.sqrt(-2.0 * tl.log(uniform(radius_word, ACC) + 2.0**-24))
    t = tl.abs(uniform(angle_word, ACC) - 0.5) - 0.25
    # A constant has 24 bits: 2 pi is the sum of two, and in float64 the series divides by integers.
    angle = t * 6.2831854820251465 - t * 1.7484555314695172e-07
    square = angle * angle
    series = tl.full(square.shape, 1.0, ACC)
    for i in tl.static_range(TERMS):
        k = TERMS - i
        term = square * series
        series = 1.0 - (term * (1.0 / (2 * k * (2 * k + 1))) if NARROW else term / (2 * k * (2 * k + 1)))
    return radius * (angle * series)


# -------------------------------------------------------------------------------------------------- behind batch norm


@triton.jit
def load_noise(noise_ptr, seed_ptr, c0, C, BLOCK_C: tl.constexpr, ACC: tl.constexpr):
    """Returns what an element's factor is drawn from: (seed, mean, deviation), of a channel each.

    They lie as (4, C): mean and deviation of the factors, and least value and width of what is added.
    """
    mean = channel_values(noise_ptr, c0, C, BLOCK_C, ACC)
    return tl.load(seed_ptr), mean, channel_values(noise_ptr + C, c0, C, BLOCK_C, ACC)


@triton.jit
def noise_of_tile(noise, tile, c0, S, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, ACC: tl.constexpr):
    """Returns (each element's factor, a word that is left for what is added to it)."""
    seed, mean, deviation = noise
    position = elements_before(tile, S, BLOCK_S) + tl.arange(0, BLOCK_S)[None, :]
    channel = c0 + tl.arange(0, BLOCK_C)[:, None]
    radius, angle, rest, _ = words(seed, position, channel, ELEMENTS)
    return mean + deviation * standard_normal(radius, angle, ACC), rest
