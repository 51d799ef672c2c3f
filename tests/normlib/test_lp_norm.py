"""l_p normalization: the truth over p, dtypes and layouts; and its layers."""

from functools import partial
from itertools import product
from math import inf, sqrt

import calls
import pytest
import torch
from calls import assert_results, results
from errors import assert_right

import normlib
from normlib import composed, reference
from normlib import functional as N

ORDERS = (1, 2, inf)
every_order = pytest.mark.parametrize("p", ORDERS)
VALUES = (torch.float32, torch.bfloat16, torch.float64)
draw = partial(calls.draw, vectors=4)


def channels_last(t):
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.mark.parametrize(
    ("dtype", "last", "offset"),
    [*product(VALUES, (False,), (2.0,)), (torch.float32, True, 1e4), (torch.float16, True, 2.0)],
)
@every_order
def test_training_and_evaluation_are_right_at_any_mean(p, dtype, last, offset, device):
    x, dy, w, b, mean, norm = draw((3, 5, 4, 7), dtype, device, offset=offset)
    x, dy = (channels_last(t) if last else t for t in (x, dy))
    running = mean.clone(), norm.clone()
    truth = reference.lp_norm(x, w, b, p, 1e-5, dy)
    found = results(lambda x, w, b: N.lp_norm(x, *running, w, b, True, 0.3, p=p), dy, x, w, b)
    assert found["y"].stride() == x.stride() == found["dx"].stride()
    assert_results(found, truth)
    for name, before, after in zip(("mean", "norm"), (mean, norm), running, strict=True):
        assert_right(after, 0.7 * before.double() + 0.3 * truth[name], f"running_{name}")

    given = reference.lp_norm_eval(x, mean, norm, w, b, p, 1e-5, dy)
    assert_results(results(lambda x, w, b: N.lp_norm(x, mean, norm, w, b, p=p), dy, x, w, b), given)


@every_order
def test_the_truth_is_the_formula_with_autograds_derivatives(p):
    x, dy, w, b, mean, norm = draw((4, 3, 5), torch.float64)
    x = x.round(decimals=1 if p != inf else 0)  # so that the maximum has ties
    truth = reference.lp_norm(x, w, b, p, 1e-5, dy)
    found = results(lambda x, w, b: composed.lp_norm(x, None, None, w, b, True, p=p), dy, x, w, b)
    torch.testing.assert_close(found, {name: truth[name] for name in found})
    y = composed.lp_norm(x, mean, norm, w, b, p=p)
    torch.testing.assert_close(y, reference.lp_norm_eval(x, mean, norm, w, b, p)["y"])


@every_order
def test_the_composition_moves_its_buffers_as_the_kernels_do(p, device):
    x, _, w, b, *running = draw((3, 5, 4), device=device)
    ours, theirs = ([t.clone() for t in running] for _ in range(2))
    y = N.lp_norm(x, *ours, w, b, True, 0.3, 0.1, p)
    torch.testing.assert_close(y, composed.lp_norm(x, *theirs, w, b, True, 0.3, 0.1, p))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("tied", [1, 2, 4])
def test_elements_that_tie_for_the_maximum_share_its_derivative_as_in_amax(tied, device):
    x = torch.tensor([3.0, -3.0, 3.0, -3.0, 1.0, 0.5], dtype=torch.float64, device=device)[:, None]
    x[tied:4] /= 2
    dy = torch.randn_like(x)
    ours = results(lambda x: N.lp_norm(x, None, None, training=True, p=inf), dy, x)
    theirs = results(lambda x: (x - x.mean(0)) / x.abs().amax(0), dy, x)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("splits", [1, 3])
def test_ties_are_counted_over_all_splits(splits, device):
    from normlib.kernels.batch_norm import lp as kernels
    from normlib.kernels.plan import Device

    x = torch.full((6, 2, 5), -2.0, device=device)
    x[:, 1, :3] = 1.0
    *_, peak = kernels.lp_norm_forward(x, None, None, None, None, inf, 0.1, 1e-5, Device(splits))
    assert peak.tolist() == [[2.0, 2.0], [30.0, 12.0]]


@every_order
def test_a_channel_of_zeros_is_divided_by_the_root_of_eps(p, device):
    x, dy = torch.zeros(4, 2, device=device), torch.randn(4, 2, device=device)
    found = results(lambda x: N.lp_norm(x, None, None, training=True, p=p), dy, x)
    assert not found["y"].any()
    torch.testing.assert_close(found["dx"], (dy - dy.mean(0)) / sqrt(1e-5))


@every_order
def test_a_nan_stays_in_its_channel_and_an_infinity_too(p, device):
    x, dy, *_, mean, norm = draw((4, 4, 3), device=device)
    x[1, 0, 1], x[2, 1, 0], x[0, 2, 0], x[3, 2, 2] = torch.nan, torch.inf, torch.inf, -torch.inf
    for t in results(lambda x: N.lp_norm(x, mean, norm, training=True, p=p), dy, x).values():
        assert t[:, :3].isnan().all() and t[:, 3].isfinite().all()
    assert norm.isnan().tolist() == [True, False, False, False]
    assert norm.isinf().tolist() == [False, True, True, False]


@every_order
def test_an_empty_batch_leaves_the_buffers_and_gives_zeros(p, device):
    *_, w, b, mean, norm = draw((2, 3), device=device)
    before = mean.clone(), norm.clone()
    x = torch.empty(0, 3, 4, device=device)
    found = results(lambda x, w, b: N.lp_norm(x, mean, norm, w, b, True, p=p), x, x, w, b)
    assert found["y"].shape == found["dx"].shape == x.shape
    assert not found["dw"].any() and not found["db"].any()
    assert torch.equal(mean, before[0]) and torch.equal(norm, before[1])


# --------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(normlib.LpNorm1d, (4, 3)), (normlib.LpNorm2d, (4, 3, 5, 2)), (normlib.LpNorm3d, (2, 3, 2, 2, 2))],
)
def test_a_layer_normalizes_by_the_batch_and_then_by_what_it_has_seen(layer, shape, device):
    x = torch.randn(shape, device=device)
    norm = layer(3, p=1, momentum=None).to(device)
    first, second = norm(x), norm(2 * x)
    torch.testing.assert_close(first, N.lp_norm(x, None, None, training=True, p=1))
    truth = reference.lp_norm(x, p=1)
    torch.testing.assert_close(norm.running_norm, 1.5 * truth["norm"].float())
    torch.testing.assert_close(second, first, rtol=1e-2, atol=1e-2)
    assert norm.num_batches_tracked == 2
    torch.testing.assert_close(norm.eval()(x), N.lp_norm(x, norm.running_mean, norm.running_norm, p=1))


def test_a_layers_state_goes_to_another_and_its_options_are_told():
    norm, other = normlib.LpNorm2d(3, p=inf), normlib.LpNorm2d(3, p=inf)
    norm(torch.randn(2, 3, 4, 4))
    other.load_state_dict(norm.state_dict())
    assert list(norm.state_dict()) == ["weight", "bias", "running_mean", "running_norm", "num_batches_tracked"]
    assert torch.equal(other.running_norm, norm.running_norm)
    assert repr(norm) == "LpNorm2d(3, p=inf, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"
    bare = normlib.LpNorm2d(3, affine=False, track_running_stats=False)
    assert not bare.state_dict() and bare.eval()(torch.randn(2, 3, 4, 4)).std() > 0.5
