"""The functional forms and modules behave as torch.nn's, in values, gradients, buffers and errors."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normlib
from normlib import functional as N

LAYERS = [
    ("BatchNorm1d", (5,), {}, (4, 5)),
    ("BatchNorm1d", (5,), {"momentum": None}, (4, 5, 6)),
    ("BatchNorm2d", (5,), {}, (4, 5, 6, 6)),
    ("BatchNorm2d", (5,), {"affine": False}, (4, 5, 6, 6)),
    ("BatchNorm2d", (5,), {"track_running_stats": False}, (4, 5, 6, 6)),
    ("BatchNorm3d", (3,), {"eps": 1e-3, "momentum": 0.5}, (2, 3, 4, 5, 6)),
    ("LayerNorm", (6,), {}, (4, 5, 6)),
    ("LayerNorm", ((5, 6),), {"bias": False}, (4, 5, 6)),
    ("LayerNorm", ((3, 5, 6),), {"elementwise_affine": False}, (2, 3, 5, 6)),
    ("RMSNorm", (6,), {}, (4, 5, 6)),
    ("RMSNorm", ((5, 6),), {"eps": 1e-3}, (4, 5, 6)),
    ("RMSNorm", (6,), {"elementwise_affine": False}, (7, 6)),
]


def pair(name, args, options, dtype=torch.float32):
    """torch's layer and ours, with the same random parameters."""
    theirs = getattr(nn, name)(*args, **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours = getattr(normlib, name)(*args, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs.to(dtype), ours.to(dtype)


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


@pytest.mark.parametrize(("name", "args", "options", "shape"), LAYERS)
def test_layers_travel(name, args, options, shape):
    theirs, ours = pair(name, args, options)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert repr(theirs) == repr(ours)
    again = pickle.loads(pickle.dumps(copy.deepcopy(ours)))
    x = torch.randn(shape)
    assert torch.equal(again.eval()(x), ours.eval()(x))


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


ERRORS = {
    "2d input to 3d layer": lambda m: m.BatchNorm3d(3)(torch.randn(2, 3, 4, 4)),
    "4d input to 1d layer": lambda m: m.BatchNorm1d(3)(torch.randn(2, 3, 4, 4)),
    "3d input to 2d layer": lambda m: m.BatchNorm2d(3)(torch.randn(2, 3, 4)),
    "one value a channel": lambda m: m.BatchNorm1d(3)(torch.randn(1, 3)),
    "eps zero in training": lambda m: m.BatchNorm1d(3, eps=0.0)(torch.randn(2, 3)),
    "eps negative in evaluation": lambda m: m.BatchNorm1d(3, eps=-1.0).eval()(torch.randn(2, 3)),
    "wrong channels": lambda m: m.BatchNorm1d(4)(torch.randn(2, 3)),
    "integers to batch norm": lambda m: m.BatchNorm1d(3)(torch.ones(2, 3, dtype=torch.int64)),
    "wrong columns": lambda m: m.LayerNorm(5)(torch.randn(2, 4)),
    "empty normalized_shape": lambda m: m.LayerNorm(())(torch.randn(2, 4)),
    "integers to layer norm": lambda m: m.LayerNorm(4)(torch.ones(2, 4, dtype=torch.int64)),
    "float32 input, bfloat16 weight": lambda m: m.LayerNorm(4, dtype=torch.bfloat16)(torch.randn(2, 4)),
    "wrong columns to rms norm": lambda m: m.RMSNorm(5)(torch.randn(2, 4)),
    "too few dimensions": lambda m: m.RMSNorm((2, 4))(torch.randn(4)),
    "integers to rms norm": lambda m: m.RMSNorm(4)(torch.ones(2, 4, dtype=torch.int64)),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_torchs_own(case):
    with pytest.raises(Exception) as theirs:
        ERRORS[case](nn)
    with pytest.raises(type(theirs.value)) as ours:
        ERRORS[case](normlib)
    assert str(ours.value) == str(theirs.value)


def test_a_refused_batch_leaves_the_buffers_alone():
    layer = normlib.BatchNorm1d(3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.randn(1, 3))
    assert not layer.running_mean.any() and bool((layer.running_var == 1).all())
    assert layer.num_batches_tracked == 1  # torch has counted by then, too


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
