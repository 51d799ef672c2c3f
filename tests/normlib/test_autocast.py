"""Autocast: the rules of the PyTorch that is installed. On CUDA layer norm and group norm compute in float32, RMS norm
where PyTorch has it so, and batch norm has no rule.

What PyTorch has no function for follows its nearest: of the channels batch norm, of part of a row RMS norm.
"""

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
    "group_norm": lambda lib, x, w: lib.group_norm(x, 3, w, w),
    "instance_norm": lambda lib, x, w: lib.instance_norm(x.view(1, 6, -1), weight=w, bias=w),
}
# Each beside the call of PyTorch's that is nearest.
NEAREST = {
    "batch_renorm": (lambda x, w: N.batch_renorm(x, w.detach() * 0, w.detach() * 0 + 1, w, w, True), "batch_norm"),
    "noisy_batch_norm": (lambda x, w: N.noisy_batch_norm(x, None, None, w, w, True), "batch_norm"),
    "lp_norm": (lambda x, w: N.lp_norm(x, None, None, w, w, True, p=1), "batch_norm"),
    "sequence_batch_norm": (lambda x, w: N.sequence_batch_norm(x.unsqueeze(0), None, None, w, w, True), "batch_norm"),
    "partial_rms_norm": (lambda x, w: N.partial_rms_norm(x, (6,), w), "rms_norm"),
}
SERVED = [(x, w) for x, w in product(DTYPES, repeat=2) if w == x or (x.itemsize == 2 and w == torch.float32)]


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


@pytest.mark.parametrize("dtypes", SERVED, ids=str)
@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("name", NEAREST)
def test_what_torch_has_not_gives_the_dtype_of_what_is_nearest(name, device, dtypes):
    ours, nearest = NEAREST[name]
    with FakeTensorMode(), autocasting(device):
        x, w = torch.empty(4, 6, dtype=dtypes[0], device=device), torch.empty(6, dtype=dtypes[1], device=device)
        assert ours(x, w).dtype == CALLS[nearest](F, x, w).dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_weight_norm_gives_the_dtype_of_torchs(device, dtype):
    with FakeTensorMode(), autocasting(device):
        v, g = (torch.empty(4, n, dtype=dtype, device=device) for n in (6, 1))
        assert N.weight_norm(v, g).dtype == torch._weight_norm(v, g, 0).dtype


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.bfloat16), pytest.param("cuda", torch.float16, marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("name", CALLS)
def test_results_and_gradients_are_as_near_to_float64_as_torchs(name, device, dtype):
    def results(library, where, wide=None):
        leaves = [t.to(where, wide or t.dtype).requires_grad_() for t in (x, w)]
        with torch.autocast(where, dtype=dtype, enabled=wide is None):
            y = CALLS[name](library, *leaves)
        found = (y, *torch.autograd.grad(y.double().pow(3).sum(), leaves))
        return [t.detach().double().cpu() for t in found]

    x, w = torch.randn(64, 6, dtype=dtype), torch.randn(6)
    truth, theirs, ours = results(F, "cpu", torch.float64), results(F, device), results(N, device)
    for result, right, torchs, our in zip(("y", "dx", "dw"), truth, theirs, ours, strict=True):
        # Of whole tensors: element by element the two differ by roundings, which gradients multiply.
        error, torchs_error = (float((t - right).norm() / right.norm()) for t in (our, torchs))
        assert error <= 2 * torchs_error + torch.finfo(dtype).eps / 4, result
