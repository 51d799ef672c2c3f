import pytest
import torch
import triton
import triton.language as tl

from normlib.kernels.numerics import float_pair, from_pair, store


@triton.jit
def _cast_kernel(out_ptr, x_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    store(out_ptr + i, tl.load(x_ptr + i, mask=i < n), i < n)


@triton.jit
def _pair_kernel(out_ptr, high, low):
    tl.store(out_ptr + tl.arange(0, 1), from_pair(high, low, tl.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_store_rounds_to_nearest_even_as_torch_does(dtype, device):
    special = [0.0, -0.0, 1.0, 1.00390625, 1.01171875, 3.3e38, -3.4e38, 1e-40, -7e-46, float("inf"), float("nan")]
    x = torch.cat([torch.tensor(special), torch.randn(4096) * torch.logspace(-40, 30, 4096)]).to(device)
    out = torch.empty(x.shape, dtype=dtype, device=device)
    _cast_kernel[(1,)](out, x, x.numel(), BLOCK=8192)
    torch.testing.assert_close(out, x.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [1e-5, 0.1, 1 / 3, 1.0, 1e-12])
def test_a_pair_brings_float64_into_a_kernel(value, device):
    out = torch.empty(1, dtype=torch.float64, device=device)
    _pair_kernel[(1,)](out, *float_pair(value))
    assert abs(out.item() - value) <= 2.0**-47 * value
