"""Philox4x32-10 (Salmon et al. 2011) in PyTorch's integer operators: the same words as kernels/batch_norm/noise.py.

32-bit words are held in int64, whose products wrap around at 2^64 and so keep all bits of a product of two words.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROUND = (0xD2511F53, 0xCD9E8D57)
_KEY = (0x9E3779B9, 0xBB67AE85)
ELEMENTS, UNITS = 0, 1  # the counter's fourth word: draws for each element, and for each channel


def words(seed: Tensor, position: Tensor, channel: Tensor, stream: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns four words in int64 for each position of each channel (the two broadcast); seed: one int64."""
    key_a, key_b = seed & _MASK, (seed >> 32) & _MASK
    a, b, c, d = position & _MASK, (position >> 32) & _MASK, channel & _MASK, torch.full_like(channel, stream)
    for _ in range(10):
        of_a, of_c = a * _ROUND[0], c * _ROUND[1]
        a, c = ((of_c >> 32) & _MASK) ^ b ^ key_a, ((of_a >> 32) & _MASK) ^ d ^ key_b
        b, d = of_c & _MASK, of_a & _MASK
        key_a, key_b = (key_a + _KEY[0]) & _MASK, (key_b + _KEY[1]) & _MASK
    return a, b, c, d


def uniform(word: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a word's upper 24 bits as a number in [0, 1), exact in float32."""
    return (word >> 8).to(dtype) * 2.0**-24


def normal(radius_word: Tensor, angle_word: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns normal numbers of mean 0 and variance 1, by Box and Muller's formula."""
    radius = (-2 * (uniform(radius_word, dtype) + 2.0**-24).log()).sqrt()
    return radius * (2 * torch.pi * uniform(angle_word, dtype)).cos()


def noise_of(x: Tensor, seed: Tensor, per_unit: bool, ranges: list[float], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns (s, m) of noisy batch norm, the factor and the offset of every element of x (N, C, *).

    ranges: mean_limit, std_limit, mean_spread, std_spread.
    """
    mean_limit, std_limit, mean_spread, std_spread = ranges
    channel = torch.arange(x.shape[1], device=x.device).view([1, -1] + [1] * (x.dim() - 2))
    place = (x.shape[0], 1, *x.shape[2:])
    position = torch.arange(prod(place), device=x.device).view(place)
    unit = channel if per_unit else channel * 0
    of_mean, of_std, _, _ = words(seed, torch.zeros_like(unit), unit, UNITS)
    mu = (2 * uniform(of_mean, dtype) - 1) * mean_limit
    sigma = 1 + uniform(of_std, dtype) * (std_limit - 1)
    radius, angle, rest, _ = words(seed, position, channel, ELEMENTS)
    s = sigma + std_spread * normal(radius, angle, dtype)
    return s, mu - mean_spread + 2 * mean_spread * uniform(rest, dtype)
