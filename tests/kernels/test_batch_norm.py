"""The batch norm kernels against float64, in both layouts, with channels split over more and fewer programs."""

from itertools import product

import pytest
import torch
from errors import assert_right, relative_error

from normlib import reference
from normlib.kernels.batch_norm import launch as kernels
from normlib.kernels.batch_norm import plan as batch_norm_plan
from normlib.kernels.host import dense
from normlib.kernels.plan import Device, Tuning

SHAPES = [(5, 7), (33, 130), (3, 5, 11), (4, 3, 7, 7), (2, 65, 7, 7), (3, 16, 14, 14), (2, 3, 4, 5, 6), (2, 1, 1, 1)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def statistics_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def draw(shape, dtype, channels_last, device, offset=3.0):
    x = torch.randn(shape, dtype=torch.float64) * 2 + offset
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    stats, c = statistics_dtype(dtype), shape[1]
    dy = torch.randn(shape, dtype=torch.float64)
    return (
        x.to(device, dtype),
        dy.to(device, dtype),
        *(torch.randn(c, dtype=stats, device=device) for _ in range(2)),
    )


def outlier(x, place):
    x[place] = 1e4
    return x


# What a sum about the first tile's mean is bad at. Two splits of several tiles, the last one ragged; channels in rows.
HOSTILE = {
    "a first tile far from the rest": lambda x: torch.where(torch.arange(x.shape[1]) < 300, x + 1e6, x),
    "a second split far from the first": lambda x: torch.where(torch.arange(x.shape[1]) < 2000, x - 3e5, x),
    "an outlier in the first tile": lambda x: outlier(x, (slice(None), 3)),
    "an outlier in the last tile": lambda x: outlier(x, (slice(None), -1)),
    "an outlier in one channel": lambda x: outlier(x, (2, 1700)),
    "sorted": lambda x: x.sort(1).values,
    "constant, then noise": lambda x: torch.where(torch.arange(x.shape[1]) < 2000, 5.0, x),
    "constant": lambda x: x * 0.0 + 0.1,
    "almost constant, far from zero": lambda x: 1e6 + x,
}


# Programs with several tiles each, with one each, and with whole channels.
SWEEPS = {
    "several tiles": {"tile": 1024, "one_tile_programs": 0, "resident_lanes": 0},
    "one tile": {"tile": 1024, "one_tile_programs": 99, "resident_lanes": 0},
    "resident": {},
}


@pytest.mark.parametrize(
    ("sweep", "channels_last"), [(s, last) for s in SWEEPS for last in (False, True) if not (last and s == "resident")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("data", HOSTILE)
def test_statistics_of_hostile_data_match_float64(data, dtype, sweep, channels_last, device):
    drawn = HOSTILE[data](torch.randn(5, 4001, dtype=torch.float64)).to(dtype)
    x = (drawn.t()[None].contiguous().movedim(-1, 1) if channels_last else drawn[None].clone()).to(device)
    plans = batch_norm_plan.batch_norm_plans(channels_last, dtype.itemsize)
    plan = Device(1, tuning=Tuning({plans: SWEEPS[sweep]}))
    tiles = batch_norm_plan.batch_norm(tuple(x.shape), channels_last, dtype.itemsize, plan)
    assert (tiles.tiles > tiles.moment_splits) == (sweep != "one tile")
    assert (batch_norm_plan.batch_norm_resident(tiles, dtype.itemsize, plan) is not None) == (sweep == "resident")
    y, mean, rstd = kernels.batch_norm_forward(x, None, None, None, None, 0.3, 1e-5, plan)
    truth = reference.batch_norm(x, None, None, 1e-5)
    assert_right(rstd, truth["rstd"], "rstd")
    off = ((mean.double().sum(0) - truth["mean"]) * truth["rstd"]).abs().max()
    assert off <= 1e-7, "the mean, in standard deviations"
    if x.unique().numel() > 1:  # of a constant nothing is left
        assert_right(y, truth["y"], "y")


@pytest.mark.parametrize("multiprocessors", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_training_matches_float64(shape, channels_last, dtype, multiprocessors, device):
    x, dy, weight, bias = draw(shape, dtype, channels_last, device)
    plan = Device(multiprocessors)
    running_mean, running_var = torch.zeros_like(weight), torch.ones_like(weight)
    y, mean, rstd = kernels.batch_norm_forward(x, weight, bias, running_mean, running_var, 0.3, 1e-5, plan)
    dx, dw, db = kernels.batch_norm_backward(dy, x, mean, rstd, weight, 1e-5, False, True, True, plan)
    truth = reference.batch_norm(x, weight, bias, 1e-5, dy)
    if x.numel() > 2 * shape[1]:  # of two values nothing is left of dx, dw but a cancellation
        for name, out in {"dx": dx, "dw": dw}.items():
            assert_right(out, truth[name], name)
    for name, out in {"y": y, "db": db, "rstd": rstd}.items():
        assert_right(out, truth[name], name)
    assert_right(mean.sum(0), truth["mean"], "mean")
    assert_right(running_mean, 0.3 * truth["mean"], "running_mean")
    assert_right(running_var, 0.7 + 0.3 * truth["var_unbiased"], "running_var")
    assert y.stride() == x.stride() and dx.stride() == x.stride()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_matches_float64(shape, channels_last, dtype, device):
    x, dy, weight, bias = draw(shape, dtype, channels_last, device)
    running_mean, running_var = torch.randn_like(weight), torch.rand_like(weight) + 0.5
    y = kernels.batch_norm_eval_forward(x, weight, bias, running_mean, running_var, 1e-3)
    found = kernels.batch_norm_backward(dy, x, running_mean, running_var, weight, 1e-3, True, True, True)
    truth = reference.batch_norm_eval(x, running_mean, running_var, weight, bias, 1e-3, dy)
    assert_right(y, truth["y"], "y")
    for name, out in zip(("dx", "dw", "db"), found, strict=True):
        assert_right(out, truth[name], name)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6])
def test_float32_errors_do_not_grow_with_the_mean(offset, channels_last, device):
    x, dy, weight, bias = draw((4, 8, 9, 9), torch.float32, channels_last, device, offset)
    plan = Device(3)
    y, mean, rstd = kernels.batch_norm_forward(x, weight, bias, None, None, 0.0, 1e-5, plan)
    dx, dw, db = kernels.batch_norm_backward(dy, x, mean, rstd, weight, 1e-5, False, True, True, plan)
    truth = reference.batch_norm(x, weight, bias, 1e-5, dy)
    for name, out in {"y": y, "dx": dx, "dw": dw, "db": db}.items():
        assert_right(out, truth[name], name)


def test_the_textbook_formula_would_fail_that_test(device):
    x, *_ = draw((4, 8, 9, 9), torch.float32, False, device, 1e4)
    variance = (x * x).mean((0, 2, 3)) - x.mean((0, 2, 3)) ** 2
    assert relative_error(variance, reference.batch_norm(x)["var"]) > 0.1


def test_a_constant_channel_has_no_variance(device):
    x = torch.full((4, 3, 5, 5), 12345.678, device=device)
    y, _, rstd = kernels.batch_norm_forward(x, None, None, None, None, 0.0, 1e-5, Device(3))
    assert not y.any()
    assert_right(rstd, torch.full((3,), 1e-5, dtype=torch.float64).rsqrt(), "rstd")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_value_stays_in_its_channel(poison, channels_last, device):
    x, _, weight, bias = draw((4, 5, 6, 6), torch.float32, channels_last, device)
    clean, *_ = kernels.batch_norm_forward(x, weight, bias, None, None, 0.0, 1e-5, Device(3))
    x[1, 2, 3, 3] = poison
    y, *_ = kernels.batch_norm_forward(x, weight, bias, None, None, 0.0, 1e-5, Device(3))
    others = [0, 1, 3, 4]
    assert torch.equal(y[:, others], clean[:, others])
    assert y[:, 2].isnan().all()


def test_the_same_bits_every_time(device):
    x, dy, weight, bias = draw((6, 20, 9, 9), torch.float16, False, device)

    def once():
        y, mean, rstd = kernels.batch_norm_forward(x, weight, bias, None, None, 0.0, 1e-5, Device(4))
        return (
            y,
            mean,
            rstd,
            *kernels.batch_norm_backward(dy, x, mean, rstd, weight, 1e-5, False, True, True, Device(4)),
        )

    first = once()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


def test_every_element_is_written(device):
    # With this setting torch.empty is full of NaN, so an element that no kernel wrote shows.
    x, dy, weight, bias = draw((3, 37, 5, 7), torch.float32, False, device)
    torch.use_deterministic_algorithms(True)
    try:
        y, mean, rstd = kernels.batch_norm_forward(x, weight, bias, None, None, 0.0, 1e-5, Device(3))
        outputs = (
            y,
            mean,
            rstd,
            *kernels.batch_norm_backward(dy, x, mean, rstd, weight, 1e-5, False, True, True, Device(3)),
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(t.isfinite().all() for t in outputs)


def test_a_gradient_in_another_layout_is_understood(device):
    x, dy, weight, _ = draw((3, 5, 6, 6), torch.float32, True, device)
    _, mean, rstd = kernels.batch_norm_forward(x, weight, None, None, None, 0.0, 1e-5)
    found = [
        kernels.batch_norm_backward(g, x, mean, rstd, weight, 1e-5, False, True, True)
        for g in (dy.contiguous(), dy.to(memory_format=torch.channels_last))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
def test_no_copy_is_made_of_either_layout(channels_last, device):
    x, *_ = draw((2, 3, 4, 5), torch.float32, channels_last, device)
    taken, last = dense(x)
    assert taken.data_ptr() == x.data_ptr() and last == channels_last


# ------------------------------------------------------------------------------------- with ReLUs and a residual around

# What runs in three launches, and in one that is one program's.
FEW, MORE = Device(2), Device(7)
FORMS = {
    "relu": {"relu": True},
    "pre-relu": {"pre_relu": True},
    "residual": {"relu": True, "adds": True},
    "everything": {"relu": True, "pre_relu": True, "adds": True},
}


def both_ways(x, dy, residual, weight, bias, plan, given=None, relu=False, pre_relu=False, adds=False):
    """Everything that a fused form computes, by name; in evaluation of `given` statistics."""
    residual, signs, dz = (residual, kernels.empty_signs(x, plan), torch.empty_like(x)) if adds else (None, None, None)
    around = {"signs": signs, "relu": relu, "pre_relu": pre_relu}
    if given is None:
        y, *saved = kernels.batch_norm_forward(
            x, weight, bias, None, None, 0.0, 1e-5, plan, residual=residual, **around
        )
    else:
        y = kernels.batch_norm_eval_forward(x, weight, bias, *given, 1e-5, plan, residual=residual, **around)
        saved = given
    arguments = (dy, x, *saved, weight, 1e-5, given is not None, True, True, plan)
    dx, dw, db = kernels.batch_norm_backward(*arguments, bias=bias, dz=dz, **around)
    found = {"y": y, "dx": dx, "dw": dw, "db": db, "dz": dz}
    return {name: t for name, t in found.items() if t is not None}


def truth_of(x, dy, residual, weight, bias, given=None, relu=False, pre_relu=False, adds=False):
    formula = (reference.batch_norm, (x,)) if given is None else (reference.batch_norm_eval, (x, *given))
    around = {"residual": residual if adds else None, "relu": relu, "pre_relu": pre_relu}
    return formula[0](*formula[1], weight, bias, 1e-5, dy, **around)


def fused_draw(shape, dtype, channels_last, device):
    x, dy, weight, bias = draw(shape, dtype, channels_last, device, offset=0.5)
    residual, *_ = draw(shape, dtype, channels_last, device, offset=0.0)
    return x, dy, residual, weight, bias


# Every form where it is cheapest, and in every shape and dtype the one that has all there is.
FUSED_CASES = [
    *(((3, 37, 7, 7), False, torch.float32, form) for form in FORMS),
    *(((3, 37, 7, 7), True, dtype, "everything") for dtype in DTYPES[:3]),
    *(((4, 5, 11), False, dtype, "everything") for dtype in DTYPES[1:]),
    ((3, 37, 7, 7), True, torch.bfloat16, "relu"),
    ((33, 70), False, torch.float32, "everything"),
]


@pytest.mark.parametrize(("shape", "channels_last", "dtype", "form"), FUSED_CASES)
def test_fused_forms_match_float64_rounded_once(shape, channels_last, dtype, form, device):
    tensors = fused_draw(shape, dtype, channels_last, device)
    given = torch.randn_like(tensors[3]), torch.rand_like(tensors[3]) + 0.5
    for plan, statistics in ((FEW, None), (MORE, None), (FEW, given)):
        truth = truth_of(*tensors, statistics, **FORMS[form])
        found = both_ways(*tensors, plan, statistics, **FORMS[form])
        assert torch.equal(found.pop("dz", truth["dz"]).double(), truth["dz"])
        for name, out in found.items():
            assert_right(out, truth[name], name)


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (3, 1, 2), (2, 2, 1, 1), (9, 3)])
def test_signs_of_tiles_that_are_smaller_than_a_byte_are_kept(shape, device):
    x, dy, residual, weight, bias = fused_draw(shape, torch.float32, False, device)
    found = both_ways(x, dy, residual, weight, bias, FEW, **FORMS["residual"])
    assert torch.equal(found["dz"], torch.where(found["y"] > 0, dy, 0.0))


@pytest.mark.parametrize("channels_last", [False, True])
def test_there_is_room_for_the_signs_of_every_plan(channels_last):
    devices = (Device(1), *(Device(132, l2=l2, cooperative=True) for l2 in (1 << 20, 50 << 20)))
    sizes = (1, 2, 7, 33, 300), (1, 3, 32, 33, 65, 96, 1000, 2048), (1, 5, 49, 196, 3136), (2, 4, 8)
    for n, c, s, itemsize in product(*sizes):
        for device in devices:
            plan = batch_norm_plan.batch_norm((n, c, s), channels_last, itemsize, device)
            needed = plan.tiles * plan.groups * max(plan.block_c * plan.block_s // 8, 1)
            room = batch_norm_plan.batch_norm_sign_bytes((n, c, s), channels_last, itemsize, device)
            assert needed <= room
            # A bit an element, but for what tiles reach past the ends.
            assert n < 33 or s < 49 or c < 32 or room <= 4 * n * c * s / 8


def test_signs_that_forward_did_not_keep_are_refused(device):
    x, dy, _, weight, bias = fused_draw((4, 5, 11), torch.float32, False, device)
    _, mean, rstd = kernels.batch_norm_forward(x, weight, bias, None, None, 0.0, 1e-5)
    with pytest.raises(ValueError, match="signs are 0 bytes of"):
        empty = torch.empty(0, dtype=torch.uint8, device=device)
        kernels.batch_norm_backward(dy, x, mean, rstd, weight, 1e-5, False, True, True, signs=empty, relu=True)


@pytest.mark.parametrize("form", ["relu", "residual"])
def test_fused_forms_have_the_same_bits_every_time_and_the_same_signs_in_any_splits(form, device):
    tensors = fused_draw((3, 37, 7, 7), torch.float32, False, device)
    first, again = (both_ways(*tensors, FEW, **FORMS[form]) for _ in range(2))
    assert all(torch.equal(out, again[name]) for name, out in first.items())
    # The order of sums differs, and no sign does.
    once = both_ways(*tensors, MORE, **FORMS[form])
    assert torch.equal(once["y"] > 0, first["y"] > 0)


@pytest.mark.parametrize("form", FORMS)
def test_every_element_of_a_fused_form_is_written(form, device):
    tensors = fused_draw((3, 37, 5, 7), torch.float32, False, device)
    torch.use_deterministic_algorithms(True)
    try:
        found = both_ways(*tensors, FEW, **FORMS[form])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(t.isfinite().all() for t in found.values())
