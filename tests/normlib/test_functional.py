"""The functional forms and modules behave as torch.nn's, in values, gradients and buffers."""

import pytest
import torch
import torch.nn.functional as F
from layers import LAYERS, pair
from torch import nn

import normlib
from normlib import functional as N


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "args", "options", "shape"), LAYERS)
def test_layers_equal_torchs(name, args, options, shape, training, device):
    theirs, ours = (layer.to(device).train(training) for layer in pair(name, args, options))
    for _ in range(2):  # twice, so that running buffers and their average move on
        x = torch.randn(shape, device=device)
        xs = [x.clone().requires_grad_() for _ in range(2)]
        ys = [layer(t) for layer, t in zip((theirs, ours), xs, strict=True)]
        torch.testing.assert_close(ys[1], ys[0])
        dy = torch.randn_like(x)
        for layer, y in zip((theirs, ours), ys, strict=True):
            layer.zero_grad()
            y.backward(dy)
        torch.testing.assert_close(xs[1].grad, xs[0].grad, rtol=1e-4, atol=1e-5)
    for (key, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5, msg=key)
    for (key, a), b in zip(theirs.named_buffers(), ours.buffers(), strict=True):
        torch.testing.assert_close(b, a, msg=key)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "batch_norm"])
def test_a_16_bit_input_beside_float32_parameters_stays_on_the_kernel(name, dtype, device):
    x = torch.randn(6, 8, device=device).to(dtype)
    weight = torch.randn(8, device=device, requires_grad=True)
    if name == "batch_norm":
        y = N.batch_norm(x, None, None, weight, None, training=True)
    else:
        y = getattr(N, name)(x, (8,), weight)
    assert any(ours in y.grad_fn.name() for ours in ("normlib", "_Train"))
    y.sum().backward()
    assert y.dtype == dtype and weight.grad.dtype == torch.float32


def test_rms_norm_takes_a_bias(device):
    layer = normlib.RMSNorm(6, eps=1e-6, bias=True, device=device)
    nn.init.normal_(layer.bias)
    x = torch.randn(3, 6, device=device)
    torch.testing.assert_close(layer(x), F.rms_norm(x, (6,), layer.weight, 1e-6) + layer.bias)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((6,), 3.0, device=device))


def test_rms_norm_has_torchs_default_eps(device):
    x = torch.full((2, 4), 1e-4, device=device)
    torch.testing.assert_close(N.rms_norm(x, (4,)), F.rms_norm(x, (4,)))


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 4, 4)])
def test_an_empty_batch_is_understood(shape, device):
    theirs, ours = pair("BatchNorm1d" if len(shape) == 2 else "BatchNorm2d", (5,), {})
    for layer in (theirs, ours):
        layer.to(device)(torch.randn(shape, device=device, requires_grad=True)).sum().backward()
    for a, b in zip((*theirs.buffers(), theirs.weight.grad), (*ours.buffers(), ours.weight.grad), strict=True):
        torch.testing.assert_close(b, a)
    for name in ("layer_norm", "rms_norm"):
        x = torch.randn(0, 5, device=device, requires_grad=True)
        weight = torch.randn(5, device=device, requires_grad=True)
        y = getattr(N, name)(x, (5,), weight)
        y.sum().backward()
        assert y.shape == (0, 5) and not weight.grad.any()


def test_what_runs_can_be_asked():
    # conftest.py has the CPU interpret where there is no GPU.
    assert normlib.backend_for(torch.empty(1)) == ("torch" if torch.cuda.is_available() else "interpreter")
    assert normlib.backend_for(torch.empty(1, device="meta")) == "torch"


@pytest.mark.gpu
def test_a_gpu_tensor_runs_triton():
    assert normlib.backend_for(torch.empty(1, device="cuda")) == "triton"
