"""Registration: what an operator does for autograd, and the way of a call to its kernel."""

import sys
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from calls import Ran

import normlib
from normlib import functional as N
from normlib.dispatch import FLOATING, suits

CALLS = {
    "layer_norm": lambda lib, x: lib.layer_norm(x, (3,)),
    "rms_norm": lambda lib, x: lib.rms_norm(x, (3,), eps=1e-5),
    "batch_norm, training": lambda lib, x: lib.batch_norm(x, None, None, training=True),
    "batch_norm, evaluation": lambda lib, x: lib.batch_norm(x, x.new_zeros(3), x.new_ones(3)),
}


class Swallow(torch.autograd.Function):
    """The identity, whose backward has no gradient to give."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return None


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("norm", [partial(N.batch_norm, training=True), N.instance_norm], ids=["batch", "instance"])
def test_running_buffers_count_as_written_once(norm, recorded, grad_mode, device):
    running = torch.zeros(3, device=device), torch.ones(3, device=device)
    with torch.set_grad_enabled(grad_mode):
        y = norm(torch.randn(4, 3, 2, device=device, requires_grad=recorded), *running)
    assert [t._version for t in running] == [1, 1]
    assert y.requires_grad == (recorded and grad_mode)


def test_parameters_are_served_in_xs_dtype_and_in_float32_beside_16_bits():
    served = [(x, p) for x, p in product(FLOATING, repeat=2) if suits(torch.ones(2, dtype=x), torch.ones(2, dtype=p))]
    assert set(served) == {(dtype, torch.float32 if dtype.itemsize == 2 else dtype) for dtype in FLOATING} | {
        (dtype, dtype) for dtype in FLOATING
    }


@pytest.mark.parametrize("name", CALLS)
def test_a_value_has_the_same_bits_recorded_or_not(name, device):
    x = torch.randn(4, 3, device=device)
    with torch.inference_mode():
        expected = CALLS[name](N, x).clone()
    assert torch.equal(CALLS[name](N, x), expected)
    assert torch.equal(CALLS[name](N, x.requires_grad_()).detach(), expected)


@pytest.mark.parametrize("name", CALLS)
def test_where_no_gradient_comes_back_none_goes_on_as_in_torch(name, device):
    for library in (F, N):
        x = torch.randn(4, 3, device=device, requires_grad=True)
        Swallow.apply(CALLS[name](library, x)).sum().backward()
        assert x.grad is None


@pytest.mark.parametrize("name", CALLS)
def test_backward_makes_no_zeros_in_place_of_gradients_that_are_not_there(name, device):
    x = torch.randn(4, 3, device=device, requires_grad=True)
    y, dy = CALLS[name](N, x), torch.ones(4, 3, device=device)
    with Ran() as ran:
        torch.autograd.grad(y, x, dy)
    assert len(ran.names) == 1 and ran.names[0].endswith("_backward")


def test_a_layer_enters_few_files_before_its_kernel_is_launched(device):
    layer, x = normlib.BatchNorm2d(3, device=device), torch.randn(4, 3, 2, 2, device=device, requires_grad=True)
    layer(x)  # what is computed once is computed here
    calls = []
    sys.setprofile(lambda frame, event, _: event == "call" and calls.append(frame.f_code))
    try:
        layer(x)
    finally:
        sys.setprofile(None)
    # The launch: the kernel itself or, before it, Triton's interpreter and what kernels/interpreter.py changes of it.
    begins = (c.co_name.endswith("_kernel") or Path(c.co_filename).name == "interpreter.py" for c in calls)
    launched = [*begins, True].index(True)
    files = {code.co_filename for code in calls[:launched]}
    ours = [file for file in files if Path(file).is_relative_to(Path(normlib.__file__).parent)]
    assert 0 < len(ours) <= 6, ours
