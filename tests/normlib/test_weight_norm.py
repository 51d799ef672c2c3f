"""Weight normalization against float64, as a parametrization beside PyTorch's, and initialized by a batch."""

import pytest
import torch
from calls import assert_results, results
from errors import assert_right
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import normlib
from normlib import composed, reference
from normlib import functional as N

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Many rows a program; three chunks, the last one partial; forward in registers and backward in a loop; both in a loop.
SHAPES = ((33, 100), (5, 1603), (2, 9000), (2, 16400))


def draw(shape, dtype, device, dim=0):
    """v, g and dw, which has a part along v: without it dg is a sum that cancels, of which float32 has fewer digits."""
    v = torch.randn(shape).to(device)
    dw = torch.randn(shape).to(device) + v
    g = torch.rand([size if d == dim else 1 for d, size in enumerate(shape)]) + 0.5
    return v.to(dtype), g.to(device, dtype), dw.to(dtype)


# -------------------------------------------------------------------------------------------------------- the function


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_and_gradients_are_those_of_float64(shape, dtype, device):
    v, g, dw = draw(shape, dtype, device)
    truth = reference.weight_norm(v, g, dw)
    assert_results(results(N.weight_norm, dw, v, g), truth)


@pytest.mark.parametrize("scale", [1e30, 1e-30, "along the row"])
@pytest.mark.parametrize("shape", [(3, 100), (2, 16400)], ids=str)
def test_rows_whose_squares_float32_does_not_hold_lose_nothing(shape, scale, device):
    v, g, dw = draw(shape, torch.float32, device)
    if scale == "along the row":  # which grows, and shrinks
        v *= torch.logspace(-30, 30, shape[1], device=device)
        v[1] = v[1].flip(0)
    else:
        v *= scale
    assert not v.square().sum().isfinite() or not v.square().any()
    truth = reference.weight_norm(v, g, dw)
    assert_results(results(N.weight_norm, dw, v, g), truth)


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_every_dimension_may_keep_its_norm(dim, device):
    v, g, dw = draw((4, 3, 2, 5), torch.float32, device, dim)
    truth = reference.weight_norm(v.movedim(dim, 0), g.movedim(dim, 0), dw.movedim(dim, 0))
    found = results(lambda v, g: N.weight_norm(v, g, dim), dw, v, g)
    assert found["y"].is_contiguous()
    for name, out in found.items():
        assert_right(out.movedim(dim, 0), truth[name], name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [None, -1])
def test_the_norm_may_be_that_of_all_of_v(dim, dtype, device):
    v, _, dw = draw((4, 30), dtype, device)
    g = torch.tensor(1.5, device=device, dtype=dtype)
    truth = reference.weight_norm(v.view(1, -1), g, dw.view(1, -1))
    for name, out in results(lambda v, g: N.weight_norm(v, g, dim), dw, v, g).items():
        assert_right(out.reshape(truth[name].shape), truth[name], name)


@pytest.mark.parametrize("dim", [0, 1, None])
def test_the_composition_gives_pytorchs_numbers(dim):
    v = torch.randn(4, 3, dtype=torch.float64)
    g = torch.norm_except_dim(v, 2, -1 if dim is None else dim) * 1.5
    torch.testing.assert_close(composed.weight_norm(v, g, dim), torch._weight_norm(v, g, -1 if dim is None else dim))
    one = torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(composed.weight_norm(one, one.abs()), one)


@pytest.mark.parametrize("strides", ["transposed", "rows apart", "expanded dw"])
def test_any_strides_are_taken(strides, device):
    v, g, dw = draw((6, 37), torch.float32, device)
    truth = reference.weight_norm(v, g, dw[:1].expand(6, 37) if strides == "expanded dw" else dw)
    if strides == "transposed":
        v, dw = (t.t().contiguous().t() for t in (v, dw))
    elif strides == "rows apart":
        v, dw = (torch.stack([t, t], 1)[:, 0] for t in (v, dw))
    else:
        dw = dw[:1].expand(6, 37)
    assert_results(results(N.weight_norm, dw, v, g), truth)


def test_a_float32_g_may_stand_beside_a_16_bit_v(device):
    v, g, dw = draw((5, 99), torch.bfloat16, device)
    g = g.float()
    truth = reference.weight_norm(v, g, dw)
    for function in (N.weight_norm, composed.weight_norm):
        found = results(function, dw, v, g)
        assert (found["y"].dtype, found["dw"].dtype) == (torch.bfloat16, torch.float32)
        assert_results(found, truth)


def test_transforms_are_those_of_pytorchs_operators(device):
    v, g, dw = draw((3, 4), torch.float64, device)
    _, tangent = torch.func.jvp(N.weight_norm, (v, g), (dw, g))
    truth = reference.weight_norm(v, g, dw)
    # The map from v is self-adjoint: forward along dw is what backward gives of it.
    torch.testing.assert_close(tangent, truth["dx"] + truth["y"])
    each = torch.func.vmap(N.weight_norm)(torch.stack([v, dw]), torch.stack([g, g]))
    torch.testing.assert_close(each, torch.stack([N.weight_norm(v, g), N.weight_norm(dw, g)]))


def test_a_row_of_zeros_has_no_direction_and_an_empty_v_no_elements(device):
    v, g, _ = draw((3, 4), torch.float32, device)
    v[1] = 0
    assert N.weight_norm(v, g).isnan().tolist() == [[False] * 4, [True] * 4, [False] * 4]
    empty = results(N.weight_norm, v[:0], v[:0], g[:0])
    assert [tuple(t.shape) for t in empty.values()] == [(0, 4), (0, 4), (0, 1)]


# -------------------------------------------------------------------------------------------------- the parametrization

LAYERS = {
    "linear": lambda: (nn.Linear(3, 4), 0, (5, 3)),
    "convolution": lambda: (nn.Conv2d(3, 4, 3), 0, (2, 3, 5, 5)),
    "transposed convolution": lambda: (nn.ConvTranspose1d(3, 4, 2), 1, (2, 3, 5)),
    "one length for all": lambda: (nn.Linear(3, 4), None, (5, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_and_loads_what_pytorchs_does(name, device):
    layer, dim, shape = LAYERS[name]()
    before = layer.weight.detach().clone()
    ours = normlib.parametrize_weight_norm(layer, dim=dim).to(device)
    torch.testing.assert_close(ours.weight.detach().cpu(), before)
    theirs = parametrizations.weight_norm(LAYERS[name]()[0], dim=dim).to(device)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape, device=device)
    found = []
    for module in (theirs, ours):
        y = module(x)
        y.square().sum().backward()
        found.append([y, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(found[1], found[0])
    theirs.load_state_dict(ours.state_dict())


def test_a_checkpoint_of_pytorchs_older_weight_norm_loads():
    ours = normlib.parametrize_weight_norm(nn.Linear(3, 4))
    state = {"weight_g": torch.rand(4, 1), "weight_v": torch.randn(4, 3), "bias": torch.randn(4)}
    ours.load_state_dict(dict(state))
    assert torch.equal(ours.parametrizations.weight.original0, state["weight_g"])
    assert torch.equal(ours.parametrizations.weight.original1, state["weight_v"])


def test_it_is_a_parametrization_that_can_be_assigned_to_and_taken_away(device):
    layer = nn.Linear(3, 4).to(device)
    parametrize.register_parametrization(layer, "weight", normlib.WeightNorm(dim=1))
    assert layer.parametrizations.weight.original0.shape == (1, 3)
    assert "dim=1" in repr(layer)
    value = torch.randn(4, 3, device=device)
    layer.weight = value
    torch.testing.assert_close(layer.weight, value)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Linear
    torch.testing.assert_close(layer.weight.detach(), value)


# --------------------------------------------------------------------------------------------------- the initialization


def mlp():
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3)), (64, 6)


def convnet():
    layers = nn.Conv2d(3, 5, 3), nn.ReLU(), nn.ConvTranspose2d(5, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(196, 3)
    return nn.Sequential(*layers), (16, 3, 8, 8)


def weight_normed(make, parametrize_layer=normlib.parametrize_weight_norm):
    net, shape = make()
    for layer in net:
        if hasattr(layer, "weight"):
            parametrize_layer(layer, dim=int(isinstance(layer, nn.ConvTranspose2d)))
    return net, torch.randn(shape) * 3 + 2


@pytest.mark.parametrize("parametrize_layer", [normlib.parametrize_weight_norm, parametrizations.weight_norm])
@pytest.mark.parametrize("make", [mlp, convnet])
def test_one_batch_gives_every_pre_activation_mean_0_and_variance_1(make, parametrize_layer):
    net, batch = weight_normed(make, parametrize_layer)
    assert normlib.initialize_weight_norm(net, batch) == [
        n for n, layer in net.named_children() if hasattr(layer, "weight")
    ]
    seen = 0
    for layer in net:
        batch = layer(batch)
        if hasattr(layer, "weight"):
            seen += 1
            units = batch.detach().movedim(1, 0).flatten(1).double()
            torch.testing.assert_close(units.mean(1), torch.zeros(len(units)).double(), rtol=0, atol=2e-6)
            torch.testing.assert_close(units.var(1, correction=0), torch.ones(len(units)).double(), rtol=5e-6, atol=0)
    assert seen == 3


def test_the_batch_decides_g_and_b_by_the_papers_formula():
    layer = normlib.parametrize_weight_norm(nn.Linear(4, 3).double())
    batch = torch.randn(50, 4, dtype=torch.float64)
    v = layer.parametrizations.weight.original1
    t = batch @ (v / v.norm(dim=1, keepdim=True)).t()
    normlib.initialize_weight_norm(layer, batch)
    sigma = t.std(0, correction=0)
    torch.testing.assert_close(layer.parametrizations.weight.original0, (1 / sigma)[:, None])
    torch.testing.assert_close(layer.bias, -t.mean(0) / sigma)


def test_a_layer_that_runs_twice_is_initialized_by_its_first_run_and_one_that_does_not_is_left_alone():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.unused, self.first = (normlib.parametrize_weight_norm(nn.Linear(3, 3)) for _ in range(3))

        def forward(self, x):
            return self.late(self.first(self.first(x)))

    net, batch = Net(), torch.randn(20, 3)
    before = {n: t.clone() for n, t in net.unused.state_dict().items()}
    assert normlib.initialize_weight_norm(net, batch) == ["first", "late"]
    assert all(torch.equal(t, before[n]) for n, t in net.unused.state_dict().items())
    torch.testing.assert_close(net.first(batch).std(0, correction=0), torch.ones(3))


REFUSED = {
    "no layer": (lambda: nn.Linear(3, 3), "no layer whose weight"),
    "no bias": (lambda: normlib.parametrize_weight_norm(nn.Linear(3, 3, bias=False)), "has no bias"),
    "not by unit": (lambda: normlib.parametrize_weight_norm(nn.Linear(3, 3), dim=None), "takes dim=0"),
    "another layer": (lambda: normlib.parametrize_weight_norm(nn.Bilinear(3, 3, 3)), "is a .*Bilinear"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_initialized_is_told(why):
    make, says = REFUSED[why]
    with pytest.raises(ValueError, match=says):
        normlib.initialize_weight_norm(make(), torch.randn(20, 3))


def test_a_unit_that_does_not_vary_is_told_and_the_model_is_as_it_was():
    net = nn.Sequential(*(normlib.parametrize_weight_norm(nn.Linear(3, 3)) for _ in range(2)))
    before = {n: t.clone() for n, t in net.state_dict().items()}
    batch = torch.randn(1, 3).expand(20, 3)
    with pytest.raises(ValueError, match="0 has units whose pre-activation does not vary"):
        normlib.initialize_weight_norm(net, batch)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
