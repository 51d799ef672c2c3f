"""Partial RMS norm: the statistic of a row's first elements, from the kernels and from PyTorch's operators."""

from functools import partial
from itertools import product

import calls
import pytest
import torch
from calls import assert_results, results
from errors import assert_right

import normlib
from normlib import composed, reference
from normlib import functional as N

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# One chunk, three of which the first has the whole statistic; and, in float64, the loops.
SHAPES = [((9, 99), dtype) for dtype in DTYPES] + [((3, 1603), torch.bfloat16), ((2, 8205), torch.float64)]
draw = partial(calls.draw, offset=1.0, wide=False)


@pytest.mark.parametrize("function", [N.partial_rms_norm, composed.partial_rms_norm], ids=["kernels", "composed"])
@pytest.mark.parametrize(("shape", "dtype"), SHAPES, ids=str)
@pytest.mark.parametrize("partial", [0.0625, 0.7])
def test_forward_and_backward_match_float64(partial, shape, dtype, function, device):
    x, dy, weight, bias = draw(shape, dtype, device)
    truth = reference.partial_rms_norm(x, shape[1:], weight, bias, 1e-6, dy, partial)
    norm = lambda x, w, b: function(x, shape[1:], w, 1e-6, b, partial)
    assert_results(results(norm, dy, x, weight, bias), truth)


@pytest.mark.parametrize("shape", [(9, 99), (3, 1603)])
def test_the_whole_row_is_rms_norm_to_the_bit(shape, device):
    x, dy, weight, bias = draw(shape, torch.float32, device)
    part, whole = (
        results(lambda x, w, b, norm=norm: norm(x, shape[1:], w, 1e-6, b), dy, x, weight, bias)
        for norm in (partial(N.partial_rms_norm, partial=1.0), N.rms_norm)
    )
    assert all(torch.equal(part[name], whole[name]) for name in whole)


@pytest.mark.parametrize("place", [1, 50])
def test_an_infinite_value_spoils_what_the_formula_has_it_spoil(place, device):
    x, dy, weight, _ = draw((3, 99), torch.float32, device)
    x[1, place] = float("inf")
    truth = reference.partial_rms_norm(x, (99,), weight, None, 1e-6, dy)
    for name, out in results(lambda x: N.partial_rms_norm(x, (99,), weight, 1e-6), dy, x).items():
        assert torch.equal(out.isnan(), truth[name].isnan()), name


def test_several_dimensions_strides_and_no_rows_are_understood(device):
    x = torch.randn(4, 3, 5, device=device).transpose(0, 1)
    weight = torch.rand(4, 5, device=device)
    truth = reference.partial_rms_norm(x, (4, 5), weight, None, 1e-6, partial=0.3)["y"]
    assert_right(N.partial_rms_norm(x, (4, 5), weight, 1e-6, partial=0.3), truth, "y")
    assert N.partial_rms_norm(x[:0], (4, 5), weight).shape == (0, 4, 5)


def test_the_module_has_rms_norms_state(device):
    layer = normlib.PartialRMSNorm(32, eps=1e-6, bias=True, partial=0.25).to(device)
    plain = normlib.RMSNorm(32, eps=1e-6, bias=True).to(device)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(5, 32, device=device)
    assert torch.equal(layer(x), N.partial_rms_norm(x, (32,), layer.weight, 1e-6, layer.bias, 0.25))
    assert "partial=0.25" in repr(layer)
    assert normlib.PartialRMSNorm(32).partial == 0.0625 and normlib.PartialRMSNorm(32).bias is None


BAD = {
    "input of another shape": lambda f, x: f(x, (5,)),
    "weight of another shape": lambda f, x: f(x, (4,), torch.ones(3)),
    "no dimension": lambda f, x: f(x, ()),
    "integers": lambda f, x: f(x.long(), (4,)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_raise_what_rms_norm_raises(name):
    x, raised = torch.ones(2, 4), []
    for norm in (N.rms_norm, N.partial_rms_norm):
        with pytest.raises((RuntimeError, NotImplementedError)) as caught:
            BAD[name](norm, x)
        raised.append(caught)
    assert raised[0].type is raised[1].type and "\n" not in str(raised[1].value)


@pytest.mark.parametrize(("x", "parameters"), list(product([torch.float16, torch.bfloat16], [None, torch.float32])))
def test_narrow_inputs_take_wide_parameters(x, parameters, device):
    value, _, weight, _ = draw((4, 40), x, device)
    weight = weight.to(parameters or x)
    y = N.partial_rms_norm(value, (40,), weight, 1e-6)
    assert y.dtype == x
    assert_right(y, reference.partial_rms_norm(value, (40,), weight, None, 1e-6)["y"], "y")
