"""Batch norm with ReLUs and a residual around it gives what its parts would give, and saves no activation for it."""

import copy
from functools import partial
from itertools import product

import calls
import pytest
import torch
import torch.nn.functional as F
from calls import Ran, leaves
from errors import assert_right

import normlib
from normlib import batch_norm, reference
from normlib import functional as N
from normlib.kernels.batch_norm import launch as kernels

FORMS = {
    "relu": {"activation": "relu"},
    "pre-relu": {"pre_activation": "relu"},
    "both": {"activation": "relu", "pre_activation": "relu"},
    "residual": {"activation": "relu", "adds": True},
    "everything": {"activation": "relu", "pre_activation": "relu", "adds": True},
}
ADDING = ("residual", "everything")
every_form = pytest.mark.parametrize("form", FORMS)
every_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
# x, residual, dy; weight, bias, running mean and variance.
draw = partial(calls.draw, tensors=3, vectors=4)


def fused(x, residual, w, b, mean, var, training, activation=None, pre_activation=None, adds=False):
    around = {"activation": activation, "pre_activation": pre_activation, "residual": residual if adds else None}
    return N.batch_norm(x, mean, var, w, b, training, 0.3, 1e-5, **around)


def parts(x, residual, w, b, mean, var, training, activation=None, pre_activation=None, adds=False):
    y = F.batch_norm(x.relu() if pre_activation else x, mean, var, w, b, training, 0.3, 1e-5)
    y = y + residual if adds else y
    return y.relu() if activation else y


# ---------------------------------------------------------------------------------------------------------- the values


@every_mode
@every_form
def test_results_gradients_and_buffers_are_those_of_the_parts_in_float64(form, training, device):
    x, residual, dy, w, b, mean, var = draw((4, 5, 3, 3), torch.float32, device)
    inputs, found = leaves(x, residual, w, b), []
    wide = leaves(*(t.double() for t in (x, residual, w, b)))
    for run, tensors, buffers in (
        (fused, inputs, (mean.clone(), var.clone())),
        (parts, wide, (mean.double(), var.double())),
    ):
        y = run(*tensors, *buffers, training, **FORMS[form])
        gradients = torch.autograd.grad(y, tensors, dy.to(y.dtype), allow_unused=True)
        found.append((y.detach(), *buffers, *gradients))
    for name, out, truth in zip(("y", "mean", "var", "dx", "dresidual", "dw", "db"), *found, strict=True):
        assert (out is None) == (truth is None) == (name == "dresidual" and form not in ADDING)
        if out is not None and truth.any():
            assert_right(out, truth, name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_16_bits_there_is_one_rounding_and_not_one_a_part(dtype, device):
    x, residual, _, w, b, mean, var = draw((4, 5, 3, 3), dtype, device)
    truth = reference.batch_norm(x, w, b, 1e-5, residual=residual, relu=True)["y"]
    assert_right(fused(x, residual, w, b, mean, var, True, **FORMS["residual"]), truth)
    y = parts(x, residual, w, b, mean, var, True, **FORMS["residual"])
    with pytest.raises(AssertionError, match="times the error of rounding"):
        assert_right(y, truth)


@every_form
def test_zero_and_nan_are_treated_as_pytorch_treats_them(form, device):
    x, residual, dy, _, b, mean, var = draw((4, 3, 2, 2), torch.float32, device)
    # Channel 0 is zero before the activation, up to the last bit; channel 1 has a NaN.
    w, b = torch.tensor([0.0, 1.0, 1.0], device=device), b * torch.tensor([0.0, 1.0, 1.0], device=device)
    residual[:, 0] = 0.0
    x[1, 1, 1, 1] = float("nan")
    for training in (True, False):
        found = []
        for run in (fused, parts):
            inputs = leaves(x, residual, w, b)
            y = run(*inputs, mean.clone(), var.clone(), training, **FORMS[form])
            found.append((y.detach(), *torch.autograd.grad(y, inputs, dy, allow_unused=True)))
        for out, expected in zip(*found, strict=True):
            if out is not None:
                torch.testing.assert_close(out, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
    if "relu" in FORMS[form].get("activation", ""):
        assert not found[0][0][:, 0].any() and not found[0][0][:, 0].signbit().any()


@pytest.mark.parametrize("layout", ["channels-last", "expanded", "transposed"])
def test_a_residual_in_any_layout_is_understood(layout, device):
    x, residual, dy, w, b, mean, var = draw((4, 5, 3, 3), torch.float32, device)
    views = {
        "channels-last": lambda t: t.to(memory_format=torch.channels_last),
        "expanded": lambda t: t[:1].expand(t.shape),
        "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    }
    residual = views[layout](residual)
    for at in (x, x.to(memory_format=torch.channels_last)):
        found = []
        for r in (residual, residual.contiguous()):
            inputs = leaves(at, w, b)
            r = r.detach().requires_grad_()
            y = fused(inputs[0], r, *inputs[1:], mean, var, True, **FORMS["residual"])
            found.append((y, *torch.autograd.grad(y, (*inputs, r), dy)))
        assert found[0][0].stride() == at.stride()
        assert all(map(torch.equal, *found))


# ------------------------------------------------------------------------------------------------------------ the cost


@every_mode
@every_form
def test_no_activation_is_saved_but_the_input(form, training, device):
    x, residual, _, w, b, mean, var = draw((4, 5, 16, 16), torch.float32, device)
    inputs, saved = leaves(x, residual, w, b), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fused(*inputs, mean, var, training, **FORMS[form])
    large = [t for t in saved if t.numel() * t.element_size() >= x.numel() // 8]
    assert large[0].data_ptr() == inputs[0].data_ptr()
    assert [t.dtype for t in large[1:]] == ([torch.uint8] if form in ADDING else [])
    # 5 channels are a tile of 8.
    assert sum(t.numel() for t in large[1:]) <= 8 / 5 * x.numel() / 8


@every_mode
def test_without_a_backward_to_come_no_sign_is_kept(training, device):
    x, residual, _, w, b, mean, var = draw((4, 5, 3, 3), torch.float32, device)
    kept = []
    empty_signs = kernels.empty_signs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "empty_signs", lambda *a: kept.append(1) or empty_signs(*a))
        plain = fused(x, residual, w, b, mean, var, training, **FORMS["residual"])
        with torch.no_grad():
            fused(*leaves(x, residual, w, b), mean, var, training, **FORMS["residual"])
        assert not kept
        recorded = fused(*leaves(x, residual, w, b), mean, var, training, **FORMS["residual"])
    assert kept and (not training or torch.equal(plain, recorded))


@every_mode
@every_form
def test_one_operator_each_way(form, training, device):
    x, residual, dy, w, b, mean, var = draw((4, 5, 3, 3), torch.float32, device)
    name = "batch_norm_add_relu" if form in ADDING else "batch_norm"
    with Ran() as ran:
        inputs = leaves(x, residual, w, b)
        ran.names.clear()
        torch.autograd.grad(fused(*inputs, mean, var, training, **FORMS[form]), inputs, dy, allow_unused=True)
    assert ran.ours == [f"{name}_{'train' if training else 'eval'}", f"{name}_backward"]
    assert not {"aten::relu", "aten::threshold_backward", "aten::add"} & set(ran.names)


@every_mode
@pytest.mark.parametrize("needs", [n for n in product((True, False), repeat=3) if any(n)], ids=str)
def test_only_what_needs_a_gradient_gets_one(needs, training, device):
    x, residual, dy, w, b, mean, var = draw((4, 5, 3, 3), torch.float32, device)
    found = []
    for flags in (needs, (True,) * 3):
        inputs = [t.clone().requires_grad_(r) for t, r in zip((x, residual, w), flags, strict=True)]
        fused(*inputs, b, mean.clone(), var.clone(), training, **FORMS["residual"]).backward(dy)
        found.append([t.grad for t in inputs])
    assert [g is not None for g in found[0]] == list(needs)
    assert all(g is None or torch.equal(g, whole) for g, whole in zip(*found, strict=True))


# -------------------------------------------------------------------------------------------- what PyTorch does with it


def test_transforms_and_forward_mode_go_through_pytorchs_formulas(device):
    x, residual, dy, w, b, mean, var = draw((4, 5, 3, 3), torch.float32, device)
    run = lambda x, r: fused(x, r, w, b, mean, var, False, **FORMS["everything"])
    with Ran() as ran:
        y, tangent = torch.func.jvp(run, (x, residual), (dy, dy))
    assert not ran.ours
    torch.testing.assert_close(y, run(x, residual))
    assert not tangent[y == 0].any()


# ------------------------------------------------------------------------------------- where the kernels do not serve


@every_mode
@every_form
def test_elsewhere_pytorchs_operators_run(form, training, monkeypatch):
    x, residual, _, w, b, mean, var = draw((4, 5, 3, 3), torch.float32, "cpu")
    monkeypatch.setattr(batch_norm, "serves", lambda *_: False)
    ours, theirs = (mean.clone(), var.clone()), (mean.clone(), var.clone())
    with Ran() as ran:
        y = fused(x, residual, w, b, *ours, training, **FORMS[form])
    assert not ran.ours
    assert torch.equal(y, parts(x, residual, w, b, *theirs, training, **FORMS[form]))
    assert all(map(torch.equal, ours, theirs))


# -------------------------------------------------------------------------------------------------------------- modules


@pytest.mark.parametrize(
    ("make", "shape"),
    [(normlib.BatchNorm1d, (4, 3)), (normlib.BatchNorm2d, (4, 3, 2, 2)), (normlib.BatchNorm3d, (2, 3, 2, 2, 2))],
)
def test_modules_hand_them_on_and_say_so(make, shape, device):
    layer = make(3, momentum=0.3, activation="relu", pre_activation="relu", device=device)
    plain = make(3, momentum=0.3, device=device)
    x, residual, *_ = draw(shape, torch.float32, device)
    expected = (plain(x.relu()) + residual).relu()
    torch.testing.assert_close(layer(x, residual), expected)
    assert torch.equal(layer.running_var, plain.running_var)
    assert "activation='relu', pre_activation='relu'" in repr(layer) and "activation" not in repr(plain)
    assert list(layer.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(layer.state_dict())
    assert copy.deepcopy(layer).activation == "relu"


def test_a_converted_module_has_no_activation(device):
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3)).to(device)
    normlib.convert(model)
    assert isinstance(model[0], normlib.BatchNorm1d) and model[0].activation is None
    assert (model(torch.randn(8, 3, device=device)) < 0).any()
