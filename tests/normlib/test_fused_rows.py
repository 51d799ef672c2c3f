"""The row norms with a residual, and RMS norm with a weight around zero: they give what their parts would give."""

from functools import partial
from itertools import product

import calls
import pytest
import torch
import torch.nn.functional as F
from calls import Ran, leaves
from errors import assert_right

import normlib
from normlib import functional as N
from normlib import reference, row_norm

OPS = torch.ops.normlib
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NORMS = {
    "layer_norm": lambda x, w, b, **more: N.layer_norm(x, w.shape, w, b, 1e-5, **more),
    "rms_norm": lambda x, w, b, **more: N.rms_norm(x, w.shape, w, 1e-5, b, **more),
    "rms_norm around zero": lambda x, w, b, **more: N.rms_norm(x, w.shape, w, 1e-5, b, zero_centred=True, **more),
}
every_norm = pytest.mark.parametrize("norm", NORMS)
# x, residual, dy, dz; weight and bias of the last dimension.
draw = partial(calls.draw, tensors=4, channel=-1, wide=False)


def truth_of(norm, z, w, b, dy, dz):
    formula = reference.layer_norm if norm == "layer_norm" else reference.rms_norm
    return formula(z, w.shape, w, b, 1e-5, dy, dz, zero_centred="zero" in norm)


# ------------------------------------------------------------------------------------------------------- the residual


@every_norm
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_pair_has_the_bits_of_the_sum_and_of_its_norm(norm, dtype, device):
    x, residual, _, _, w, b = draw((5, 99), dtype, device)
    y, z = NORMS[norm](x, w, b, residual=residual)
    assert torch.equal(z, x + residual)
    assert torch.equal(y, NORMS[norm](z, w, b))


@pytest.mark.parametrize("shape", [(2, 1603), (2, 8205)])  # chunks; and, in float64, the loops
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm around zero"])
def test_wide_rows_have_them_too_and_gradients_rounded_once(norm, shape, device):
    dtype = torch.bfloat16 if shape[1] < 2000 else torch.float64
    x, residual, dy, dz, w, b = draw(shape, dtype, device)
    inputs = leaves(x, w)
    y, z = NORMS[norm](*inputs, b, residual=residual)
    assert torch.equal(z, x + residual)
    assert torch.equal(y, NORMS[norm](z, w, b))
    dx, dw = torch.autograd.grad((y, z), inputs, (dy, dz))
    truth = truth_of(norm, x + residual, w, b, dy, dz)
    for out, name in ((y.detach(), "y"), (dx, "dx"), (dw, "dw")):
        assert_right(out, truth[name], name)


@every_norm
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_those_of_float64_rounded_once(norm, dtype, device):
    x, residual, dy, dz, w, b = draw((9, 100), dtype, device)
    inputs = leaves(x, residual, w, b)
    pair = NORMS[norm](inputs[0], *inputs[2:], residual=inputs[1])
    dx, dresidual, dw, db = torch.autograd.grad(pair, inputs, (dy, dz))
    truth = truth_of(norm, x + residual, w, b, dy, dz)
    assert torch.equal(dx, dresidual)
    for out, name in ((pair[0].detach(), "y"), (dx, "dx"), (dw, "dw"), (db, "db")):
        assert_right(out, truth[name], name)


@every_norm
def test_a_gradient_of_z_alone_goes_past_the_norm(norm, device):
    x, residual, _, dz, w, b = draw((4, 24), torch.float32, device)
    inputs = leaves(x, residual, w, b)
    _, z = NORMS[norm](inputs[0], *inputs[2:], residual=inputs[1])
    with Ran() as ran:
        dx, dresidual, dw, db = torch.autograd.grad(z, inputs, dz, allow_unused=True)
    assert ran.ours == []
    assert torch.equal(dx, dz) and torch.equal(dresidual, dz) and dw is None and db is None


@every_norm
@pytest.mark.parametrize("needs", [flags for flags in product((True, False), repeat=3) if any(flags)], ids=str)
def test_only_what_needs_a_gradient_gets_one(norm, needs, device):
    x, residual, dy, dz, w, b = draw((4, 24), torch.float32, device)
    tensors = [t.requires_grad_(r) for t, r in zip((x, residual, w), needs, strict=True)]
    y, z = NORMS[norm](x, w, b, residual=residual)
    assert y.requires_grad and z.requires_grad  # of one operator, as a custom one has it
    (y * dy + z * dz).sum().backward()
    assert [t.grad is not None for t in tensors] == list(needs)
    whole = leaves(x, residual, w)
    y, z = NORMS[norm](whole[0], whole[2], b, residual=whole[1])
    (y * dy + z * dz).sum().backward()
    for t, other in zip(tensors, whole, strict=True):
        assert t.grad is None or torch.equal(t.grad, other.grad)


def test_the_gradients_of_input_and_residual_share_no_memory(device):
    x, residual, dy, dz, w, b = draw((4, 24), torch.float32, device)
    x, residual = leaves(x, residual)
    torch.autograd.backward(NORMS["rms_norm"](x, w, b, residual=residual), (dy, dz))
    before = residual.grad.clone()
    x.grad.zero_()  # as an optimizer of one of them may
    assert torch.equal(residual.grad, before)


def test_one_tensor_may_be_both_input_and_residual(device):
    x, _, dy, dz, w, b = draw((4, 24), torch.float32, device)
    ours, theirs = leaves(x, x)
    y, z = NORMS["layer_norm"](ours, w, b, residual=ours)
    torch.autograd.backward((y, z), (dy, dz))
    z = theirs + theirs
    torch.autograd.backward((NORMS["layer_norm"](z, w, b), z), (dy, dz))
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("layout", ["rows apart", "transposed", "expanded"])
def test_strided_residuals_and_gradients_are_understood(layout, device):
    views = {
        "rows apart": lambda t: torch.stack([t, t], 1)[:, 0],
        "transposed": lambda t: t.t().contiguous().t(),
        "expanded": lambda t: t[:1].expand(t.shape),
    }
    x, residual, dy, dz, w, b = draw((6, 24), torch.float32, device)
    residual, dz = (views[layout](t) for t in (residual, dz))
    found = []
    for r, g in ((residual, dz), (residual.contiguous(), dz.contiguous())):
        leaf = x.clone().requires_grad_()
        pair = NORMS["layer_norm"](leaf, w, b, residual=r)
        found.append((*pair, *torch.autograd.grad(pair, leaf, (dy, g))))
    assert all(map(torch.equal, *found))


def test_a_residual_beside_no_parameters_or_float32_ones_or_no_rows(device):
    x, residual, *_ = draw((3, 8), torch.bfloat16, device)
    wide = torch.randn(8, device=device)
    assert torch.equal(N.layer_norm(x, (8,), residual=residual)[0], N.layer_norm(x + residual, (8,)))
    y, z = N.rms_norm(x, (8,), wide, residual=residual)
    assert y.dtype == torch.bfloat16 and torch.equal(y, N.rms_norm(z, (8,), wide))
    y, z = N.rms_norm(x[:0], (8,), wide, residual=residual[:0])
    assert y.shape == z.shape == (0, 8)


@pytest.mark.parametrize("norm", [N.layer_norm, N.rms_norm])
def test_what_pytorch_refuses_it_refuses_with_a_residual(norm):
    x = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="expected input with shape"):
        norm(x, (5,), residual=x)
    with pytest.raises(NotImplementedError):
        norm(x.long(), (3,), residual=x.long())


def test_under_autocast_the_sum_keeps_its_dtype(device):
    x, residual, _, _, w, b = draw((3, 8), torch.bfloat16, device)
    with torch.autocast(device.type, torch.bfloat16), Ran() as ran:
        y, z = N.layer_norm(x, (8,), w, b, residual=residual)
        assert torch.equal(z, x + residual)
        assert torch.equal(y, N.layer_norm(z, (8,), w, b))
    assert "layer_norm_add" not in ran.ours


# ---------------------------------------------------------------------------------------------- a weight around zero


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_one_is_added_before_any_rounding(dtype, device):
    x, _, dy, _, w, _ = draw((8, 100), dtype, device)
    w = w * 1e-3  # 1 + weight in 16 bits would lose most of it
    leaf, weight = leaves(x, w)
    y = N.rms_norm(leaf, (100,), weight, 1e-6, zero_centred=True)
    dx, dw = torch.autograd.grad(y, (leaf, weight), dy)
    truth = reference.rms_norm(x, (100,), 1 + w.double(), None, 1e-6, dy)
    for out, name in ((y.detach(), "y"), (dx, "dx"), (dw, "dw")):
        assert_right(out, truth[name], name)


def test_a_weight_of_zero_scales_nothing_and_none_has_no_place_for_the_one(device):
    x, *_ = draw((3, 8), torch.float32, device)
    plain = N.rms_norm(x, (8,), None, 1e-6)
    assert torch.equal(N.rms_norm(x, (8,), torch.zeros(8, device=device), 1e-6, zero_centred=True), plain)
    assert torch.equal(N.rms_norm(x, (8,), None, 1e-6, zero_centred=True), plain)


# ------------------------------------------------------------------------------------- where the kernels do not serve


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_elsewhere_pytorchs_operators_give_the_same_pair(norm, dtype, monkeypatch):
    x, residual, dy, dz, w, b = draw((6, 40), dtype, "cpu")
    inputs = leaves(x, residual, w, b)
    monkeypatch.setattr(row_norm, "serves", lambda *_: False)
    with Ran() as ran:
        y, z = NORMS[norm](inputs[0], *inputs[2:], residual=inputs[1])
        gradients = torch.autograd.grad((y, z), inputs, (dy, dz))
    assert ran.ours == [] and y.dtype == z.dtype == dtype
    monkeypatch.undo()
    ours = leaves(x, residual, w, b)
    pair = NORMS[norm](ours[0], *ours[2:], residual=ours[1])
    expected = (*pair, *torch.autograd.grad(pair, ours, (dy, dz)))
    assert torch.equal(z, pair[1])
    # PyTorch rounds more often in 16 bits.
    bound = {"rtol": 2e-2, "atol": 3e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    for a, e in zip((y, z, *gradients), expected, strict=True):
        torch.testing.assert_close(a, e, **bound)


def test_transforms_and_forward_mode_go_through_pytorchs_formulas(device):
    x, residual, dy, _, w, b = draw((3, 8), torch.float32, device)
    mapped = torch.func.vmap(lambda x, r: N.rms_norm(x, (8,), w, 1e-5, b, residual=r, zero_centred=True))(x, residual)
    torch.testing.assert_close(mapped, N.rms_norm(x, (8,), w, 1e-5, b, residual=residual, zero_centred=True))
    (y, z), (_, tangent) = torch.func.jvp(lambda x: N.layer_norm(x, (8,), w, b, residual=residual), (x,), (dy,))
    assert torch.equal(z, x + residual) and torch.equal(tangent, dy) and y.shape == x.shape


def test_what_pytorch_refuses_it_refuses_around_zero():
    for args in ((torch.ones(2, 3).long(), (3,), torch.ones(3)), (torch.ones(2, 3), (5,), torch.ones(5))):
        with pytest.raises(Exception) as theirs:
            F.rms_norm(*args)
        with pytest.raises(theirs.type):
            N.rms_norm(*args, zero_centred=True)


# ------------------------------------------------------------------------------------------------------------- modules


@pytest.mark.parametrize("make", [normlib.LayerNorm, normlib.RMSNorm])
def test_modules_take_a_residual(make, device):
    layer = make(8, device=device)
    x, residual, *_ = draw((3, 8), torch.float32, device)
    y, z = layer(x, residual)
    assert torch.equal(z, x + residual) and torch.equal(y, layer(z))
    assert all(map(torch.equal, layer(x, residual=residual), (y, z)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_eps_of_none_is_that_of_the_statistics_dtype(dtype, device):
    x = torch.full((2, 3), 1e-3, device=device, dtype=dtype)
    zeros = torch.zeros_like(x)
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    y, _ = N.rms_norm(x, (3,), residual=zeros)
    assert torch.equal(y, N.rms_norm(x, (3,), eps=eps)) and torch.equal(y, N.rms_norm(x, (3,)))


def test_a_module_around_zero_begins_there_and_says_so(device):
    layer = normlib.RMSNorm(8, eps=1e-6, bias=True, zero_centred=True, device=device)
    assert not layer.weight.any() and "bias=True, zero_centred=True" in repr(layer)
    x, residual, _, _, w, _ = draw((3, 8), torch.float32, device)
    with torch.no_grad():
        layer.weight.copy_(w)
    assert torch.equal(layer(x), N.rms_norm(x, (8,), w, 1e-6, zero_centred=True))
    assert torch.equal(layer(x, residual)[0], layer(x + residual))
    layer.reset_parameters()
    assert not layer.weight.any()
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert "zero_centred" not in repr(normlib.RMSNorm(8)) and normlib.RMSNorm(8).weight.eq(1).all()
    assert normlib.RMSNorm(8, elementwise_affine=False, zero_centred=True).weight is None
