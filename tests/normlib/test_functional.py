"""The functional forms and modules behave as torch.nn's, in values, gradients and buffers."""

import pytest
import torch
from layers import LAYERS, pair

import normlib


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


def test_what_runs_can_be_asked():
    # conftest.py has the CPU interpret where there is no GPU.
    assert normlib.backend_for(torch.empty(1)) == ("torch" if torch.cuda.is_available() else "interpreter")
    assert normlib.backend_for(torch.empty(1, device="meta")) == "torch"


@pytest.mark.gpu
def test_a_gpu_tensor_runs_triton():
    assert normlib.backend_for(torch.empty(1, device="cuda")) == "triton"
