"""Roundings that NumPy lacks, compared with exact fractions and with PyTorch."""

from fractions import Fraction

import numpy as np
import torch

from ptx.arithmetic import fma32, fma64, from_bf16, to_bf16


def values(dtype, n=2000):
    generator = np.random.default_rng(0)
    return (generator.standard_normal(n) * 2.0 ** generator.integers(-20, 20, n)).astype(dtype)


def assert_rounded_once(fma, dtype, a, b, c):
    for result, *terms in zip(fma(a, b, c), a, b, c, strict=True):
        x, y, z = (Fraction(float(term)) for term in terms)
        others = (np.nextafter(result, dtype(end)) for end in (-np.inf, np.inf))
        off, *theirs = (abs(Fraction(float(one)) - (x * y + z)) for one in (result, *others))
        assert off <= min(theirs), terms


def test_fma_rounds_once():
    a, b, c = values(np.float32), values(np.float32)[::-1], np.roll(values(np.float32), 7)
    assert_rounded_once(fma32, np.float32, a, b, c)
    # A product half way between two float32s, and beside it what its sum in float64 is too coarse for.
    a, small = np.full(64, 1 + 2.0**-12, np.float32), np.float32(2.0) ** -np.arange(24, 88, dtype=np.float32)
    assert_rounded_once(fma32, np.float32, a, a, small)
    assert_rounded_once(fma32, np.float32, a, a, -small)
    a, b, c = (v.astype(np.float64) for v in (values(np.float64), values(np.float64)[::-1], values(np.float64)))
    assert_rounded_once(fma64, np.float64, a, b, -np.roll(c, 7))


def test_bfloat16_is_rounded_as_pytorch_does():
    x = torch.from_numpy(values(np.float32))
    assert (from_bf16(to_bf16(x.numpy())) == x.bfloat16().float().numpy()).all()
