"""Merged moments and sums are as good as float64 rounded once, however unlike the terms are."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from normlib.kernels.batch_norm import launch as kernels
from normlib.kernels.host import float_pair
from normlib.kernels.plan import Device
from normlib.kernels.reduction import accurate_sum, rstd_of

FLOAT32 = torch.finfo(torch.float32)


@triton.jit
def _sum_kernel(out_ptr, x_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    x = tl.load(x_ptr + row * COLUMNS + tl.arange(0, COLUMNS)[None, :])
    tl.store(out_ptr + row, accurate_sum(x, 1))


def summed(x):
    out = torch.empty(len(x), 1, dtype=x.dtype, device=x.device)
    _sum_kernel[(1,)](out, x, ROWS=x.shape[0], COLUMNS=x.shape[1])
    return out.squeeze(1)


@triton.jit
def _rstd_kernel(out_ptr, variance_ptr, eps, eps_low, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    variance = tl.load(variance_ptr + i)
    tl.store(out_ptr + i, rstd_of(variance, eps, eps_low, variance.dtype))


def rstd(variance, eps):
    out = torch.empty_like(variance)
    _rstd_kernel[(1,)](out, variance, *float_pair(eps), SIZE=len(variance))
    return out


def ulps(out, truth):
    """The error in units in the last place that the truth has in float32."""
    unit = torch.ldexp(torch.ones_like(truth), torch.frexp(truth).exponent - 24)
    return (out.double() - truth).abs() / unit


def test_a_sum_is_off_by_its_own_rounding_whatever_the_size_of_its_terms(device):
    x = torch.randn(64, 64, device=device)
    x[:, 0] *= 1e3
    x[::2, 1] = -x[::2, 0]  # and where the largest cancel
    # A rounding of the result, and what lower parts are off by: 2^-24 of 64 / 2^22 of the largest term each.
    truth = x.double().sum(1)
    allowed = 0.51 * FLOAT32.eps * truth.abs() + 64 * 2.0**-24 * 64 * 2.0**-22 * x.abs().amax(1).double()
    assert bool(((summed(x) - truth).abs() <= allowed).all())
    plain = (torch.from_numpy(np.cumsum(x.cpu().numpy(), 1)[:, -1]).to(truth) - truth).abs()
    assert bool((plain > 2 * allowed).any()), "a plain sum would do"


@pytest.mark.parametrize(
    ("terms", "total"),
    [
        ((float("inf"), 1.0), float("inf")),
        ((float("inf"), float("-inf")), float("nan")),
        ((float("nan"), 1.0), float("nan")),
        ((3e38, -3e38), 0.0),
        ((2.0**-149, 2.0**-149), 2.0**-148),
        ((0.0, 0.0), 0.0),
    ],
)
def test_a_sum_at_the_ends_of_the_range_is_that_of_its_terms(terms, total, device):
    x = torch.zeros(1, 16, device=device)
    x[0, :2] = torch.tensor(terms)
    torch.testing.assert_close(summed(x), torch.tensor([total], device=device), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1.0])
def test_rstd_in_float32_is_the_nearest_or_almost(eps, device):
    variance = torch.exp2(torch.linspace(-40, 40, 4096, device=device)) * (1 + torch.rand(4096, device=device))
    out, truth = rstd(variance, eps), (variance.double() + eps).rsqrt()
    assert float(ulps(out, truth).max()) < 0.51
    plain = ulps(1 / (variance + torch.tensor(eps)).sqrt(), truth)
    assert float(plain.max()) > 1.0, "a plain root would do"


@pytest.mark.parametrize(("variance", "root"), [(0.0, float("inf")), (float("inf"), 0.0), (2.0**-140, 2.0**70)])
def test_rstd_at_the_ends_of_the_range_is_what_the_root_says(variance, root, device):
    assert rstd(torch.full((16,), variance, device=device), 0.0).tolist() == [root] * 16
    assert rstd(torch.full((16,), float("nan"), device=device), 0.0).isnan().all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_saved_mean_beside_an_outlier_is_as_good_as_a_rounded_one(dtype, channels_last, device):
    x = torch.randn(4, 32, 4, 4, device=device) + 3.0 * torch.rand(1, 32, 1, 1, device=device)
    x[1, :, 2, 3] = 1e3
    x = x.to(dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    for splits in (Device(1), Device(2)):
        _, mean, root = kernels.batch_norm_forward(x, None, None, None, None, 0.0, 1e-5, splits)
        truth, biased = (t.flatten() for t in torch.var_mean(x.double(), (0, 2, 3), correction=0)[::-1])
        # Half a unit is a correct rounding's. Sums of float32 within a tile add theirs; those of 16 bits nearly none.
        assert float(ulps(mean[0], truth).max()) <= (1.5 if dtype == torch.float32 else 0.75)
        assert float(ulps(root, (biased + 1e-5).rsqrt()).max()) <= 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_saved_mean_of_what_is_not_finite_is_that_or_nan(dtype, device):
    x = torch.randn(4, 8, 4, 4, device=device)
    x[1, 0, 2, 3], x[2, 1, 0, 0], x[3, 2, 1, 1] = float("inf"), float("-inf"), float("nan")
    _, mean, root = kernels.batch_norm_forward(x.to(dtype), None, None, None, None, 0.0, 1e-5, Device(1))
    wanted = torch.tensor([float("inf"), float("-inf"), float("nan")], device=device)
    torch.testing.assert_close(mean[0, :3], wanted, rtol=0, atol=0, equal_nan=True)
    assert root[:3].isnan().all() and mean[:, 3:].isfinite().all() and root[3:].isfinite().all()
