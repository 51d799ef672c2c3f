"""Group norm and instance norm against float64's formula and PyTorch; and their plans."""

from functools import partial
from itertools import product

import calls
import pytest
import torch
import torch.nn.functional as F
from calls import assert_results, results
from errors import assert_right
from samples import DTYPES, complaint
from torch import nn

import normlib
import normlib.functional as N
from normlib import reference
from normlib.kernels.batch_norm import plan as batch_norm_plan
from normlib.kernels.group_norm import launch as kernels
from normlib.kernels.group_norm import plan as group_norm_plan
from normlib.kernels.plan import Device

LAYOUTS = {
    "contiguous": lambda t: t,
    "channels-last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    "neither": lambda t: torch.stack([t, t], -1)[..., 0],
}
# Shape and groups: several groups a tile; rows that a group does not fill; a group of all channels; a channel a group.
SHAPES = {"pairs": ((2, 6, 3, 5), 3), "fives": ((2, 10, 7), 2), "all": ((2, 6, 4), 1), "own": ((2, 5, 9), 5)}
draw = partial(calls.draw, offset=3.0, wide=False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_group_norm_matches_float64(name, dtype, layout, device):
    shape, groups = SHAPES[name]
    x, dy, weight, bias = draw(shape, dtype, device)
    x, dy = (LAYOUTS[layout](t) for t in (x, dy))
    found = results(lambda x, w, b: N.group_norm(x, groups, w, b), dy, x, weight, bias)
    assert_results(found, reference.group_norm(x, groups, weight, bias, 1e-5, dy))
    if layout != "neither":
        assert found["y"].stride() == found["dx"].stride() == x.stride()


# A group of several splits, each with the last of its tiles partial; splits of one channel; channels of several groups.
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize(("shape", "groups"), [((1, 6, 70, 70), 2), ((1, 3, 17000), 3), ((1, 20, 2100), 4)])
def test_a_split_group_matches_float64(shape, groups, last, device):
    x, dy, weight, bias = draw(shape, torch.float32, device, offset=1e3)
    x, dy = (LAYOUTS["channels-last" if last else "contiguous"](t) for t in (x, dy))
    wide = Device(16)
    assert not group_norm_plan.group_norm(shape, groups, last, 4, wide).rows
    y, mean, rstd = kernels.group_norm_forward(x, groups, weight, bias, 1e-5, wide)
    dtype = weight.dtype
    gradients = kernels.group_norm_backward(dy, x, groups, mean, rstd, weight, dtype, dtype, True, wide)
    truth = reference.group_norm(x, groups, weight, bias, 1e-5, dy)
    found = {"y": y, "rstd": rstd, "mean": mean[0], **dict(zip(("dx", "dw", "db"), gradients, strict=True))}
    assert_results(found, truth)


@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)], ids=["dw", "db", "both"])
@pytest.mark.parametrize("need_dx", [True, False])
def test_only_the_gradients_that_are_asked_for_come_back(need_dx, needs, device):
    x, dy, weight, _ = draw((2, 6, 9), torch.float32, device)
    _, mean, rstd = kernels.group_norm_forward(x, 3, weight, None, 1e-5)
    dtypes = [torch.float32 if need else None for need in needs]
    found = kernels.group_norm_backward(dy, x, 3, mean, rstd, weight, *dtypes, need_dx)
    truth = reference.group_norm(x, 3, weight, None, 1e-5, dy)
    for key, value, wanted in zip(("dx", "dw", "db"), found, (need_dx, *needs), strict=True):
        assert (value is not None) == wanted
        if value is not None:
            assert_right(value, truth[key], key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_and_its_running_statistics_match_float64(affine, dtype, device):
    x, dy, weight, bias = draw((3, 5, 4, 6), dtype, device)
    running_mean, running_var = torch.randn(5, device=device), torch.rand(5, device=device) + 0.5
    expected = [t.double() for t in (running_mean, running_var)]
    parameters = (weight, bias) if affine else ()
    truth = reference.instance_norm(x, *parameters, eps=1e-5, dy=dy)
    norm = lambda x, *parameters: N.instance_norm(x, running_mean, running_var, *parameters, momentum=0.3)
    assert_results(results(norm, dy, x, *parameters), truth)
    moved = (truth["mean_of_images"], truth["var_unbiased_of_images"])
    for buffer, before, towards in zip((running_mean, running_var), expected, moved, strict=True):
        assert_right(buffer, 0.7 * before + 0.3 * towards)


def test_running_statistics_of_many_images_move_by_their_mean(device):
    x, *_ = draw((19, 3, 2), torch.float32, device)
    ours, theirs = ([torch.zeros(3, device=device), torch.ones(3, device=device)] for _ in range(2))
    N.instance_norm(x, *ours)
    F.instance_norm(x, *theirs)
    torch.testing.assert_close(ours, theirs)


def test_evaluation_with_running_statistics_is_batch_norms(device):
    x, _, weight, bias = draw((2, 5, 7), torch.float32, device)
    running = torch.randn(5, device=device), torch.rand(5, device=device) + 0.5
    y = N.instance_norm(x, *running, weight, bias, use_input_stats=False)
    assert torch.equal(y, N.batch_norm(x, *running, weight, bias))


@pytest.mark.parametrize("function", [N.group_norm, N.instance_norm], ids=["group_norm", "instance_norm"])
def test_float32_errors_do_not_grow_with_the_mean(function, device):
    x, *_ = draw((2, 4, 200), torch.float32, device, offset=1e6)
    groups = 2 if function is N.group_norm else 4
    y = function(x, groups) if function is N.group_norm else function(x)
    assert_right(y, reference.group_norm(x, groups)["y"])


def test_a_nan_stays_in_its_group(device):
    x, *_ = draw((2, 6, 5), torch.float32, device)
    x[1, 3, 2] = torch.nan
    nan = N.group_norm(x, 3).isnan()
    assert nan[1, 2:4].all() and nan.sum() == 10


def test_an_infinity_is_the_running_mean_it_moves_towards(device):
    x, *_ = draw((1, 2, 5), torch.float32, device)
    x[0, 0, 1] = torch.inf
    mean, var = torch.zeros(2, device=device), torch.ones(2, device=device)
    N.instance_norm(x, mean, var)
    assert mean[0] == torch.inf and var[0].isnan() and mean[1].isfinite()


@pytest.mark.parametrize("shape", [(0, 6, 4), (2, 6, 0), (0, 6)])
def test_without_elements_there_are_gradients_of_zero(shape, device):
    x = torch.randn(shape, device=device, requires_grad=True)
    weight, bias = (torch.randn(6, device=device, requires_grad=True) for _ in range(2))
    y = N.group_norm(x, 2, weight, bias)
    dx, dw, db = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert y.shape == dx.shape == x.shape and not dw.any() and not db.any()


# ------------------------------------------------------------------------------------------------------- as PyTorch's


def test_a_layers_mistakes_raise_what_torchs_do():
    for make in (
        lambda lib: lib.GroupNorm(4, 6),
        lambda lib: lib.InstanceNorm2d(6)(torch.randn(6, 4)),
        lambda lib: lib.InstanceNorm1d(5, affine=True)(torch.randn(2, 6, 4)),
    ):
        assert complaint(lambda make=make: make(normlib)) == complaint(lambda make=make: make(nn)) is not None


# ------------------------------------------------------------------------------------------------------------- plans

H200 = Device(132, l2=50 << 20, cooperative=True)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_a_plans_tiles_hold_whole_groups_or_none(itemsize, last):
    for channels, positions, batch in product((1, 6, 40, 64, 320, 2048), (1, 49, 3136, 1 << 18), (1, 32)):
        for groups in {g for g in (1, 2, 8, 32, channels) if channels % g == 0}:
            plan = group_norm_plan.group_norm((batch, channels, positions), groups, last, itemsize, H200)
            assert plan.block_c * plan.block_s <= batch_norm_plan.TILE[itemsize]
            assert 1 <= plan.splits <= plan.tiles
            if plan.rows:
                assert plan.block_c % plan.rows == 0 and plan.rows >= plan.per_group
                # Where rows have gaps, a tile is one group's.
                assert plan.rows == plan.per_group or plan.block_c == plan.rows


def test_no_tile_follows_the_batch_size():
    for groups, last in product((1, 8, 32, 64), (False, True)):
        found = [group_norm_plan.group_norm((n, 64, 56, 56), groups, last, 2, H200) for n in (1, 3, 32, 1000)]
        for whole in (True, False):
            assert len({(p.block_c, p.block_s) for p in found if bool(p.rows) == whole}) <= 1


def test_one_image_of_few_groups_is_split_over_more_programs_than_it_has_groups():
    plan = group_norm_plan.group_norm((1, 256, 1024, 1024), 32, False, 2, H200)
    assert plan.groups * plan.splits >= 4 * H200.multiprocessors
