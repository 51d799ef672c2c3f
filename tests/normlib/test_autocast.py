"""Autocast: the installed PyTorch's rules. On CUDA row norms may compute in float32; batch norm has no rule."""

from contextlib import contextmanager
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from normlib import functional as N

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CALLS = {
    "batch_norm": lambda lib, x, w: lib.batch_norm(x, None, None, w, w, True),
    "layer_norm": lambda lib, x, w: lib.layer_norm(x, (6,), w, w),
    "rms_norm": lambda lib, x, w: lib.rms_norm(x, (6,), w),
}


@contextmanager
def autocasting(device):
    """torch.autocast, which switches itself off for CUDA on a machine without it."""
    before = torch.is_autocast_enabled(device)
    torch.set_autocast_enabled(device, True)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, before)


@pytest.mark.parametrize("dtypes", list(product(DTYPES, repeat=2)), ids=str)
@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("name", CALLS)
def test_results_have_the_dtype_that_torch_gives_them(name, device, dtypes):
    # Fake tensors go through the dispatcher, where these rules live, and need no GPU.
    with FakeTensorMode(), autocasting(device):
        x, w = torch.empty(4, 6, dtype=dtypes[0], device=device), torch.empty(6, dtype=dtypes[1], device=device)
        theirs, ours = (CALLS[name](library, x, w) for library in (F, N))
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_autocast_on_a_gpu_computes_what_torch_computes(name):
    found = []
    for library in (F, N):
        torch.manual_seed(0)
        x = torch.randn(64, 6, device="cuda", dtype=torch.float16, requires_grad=True)
        w = torch.randn(6, device="cuda", requires_grad=True)
        with torch.autocast("cuda"):
            y = CALLS[name](library, x, w)
        found.append((y, *torch.autograd.grad(y.float().pow(3).sum(), (x, w))))
    # PyTorch's float16 sums are a rounding or two from ours.
    torch.testing.assert_close(found[1], found[0], rtol=4e-3, atol=4e-3)
