"""Batch renormalization against float64, its identities, and its schedules."""

import pytest
import torch
from torch.nn import functional as F

import normlib
from normlib import composed, reference
from normlib import functional as N
from normlib.batch_renorm import PAPER_DMAX, PAPER_RMAX, Ramp

DTYPES = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float64: 1e-12}  # some roundings; one of 8 bits
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
NAMES = ("y", "dx", "dw", "db", "running_mean", "running_std")


def problem(dtype=torch.float32, layout="nchw", device="cpu", shape=(4, 5, 3, 3)):
    wide = torch.promote_types(dtype, torch.float32)
    x, dy = (torch.randn(shape, device=device).mul(2).add(1).to(dtype).to(memory_format=LAYOUTS[layout]) for _ in "xy")
    mean, weight, bias = (torch.randn(5, device=device, dtype=wide) for _ in range(3))
    return x, dy, mean, torch.rand(5, device=device, dtype=wide) * 3 + 0.3, weight, bias


def passes(function, x, dy, mean, std, weight, bias, *arguments, **options):
    """Returns results, gradients and buffers of one call in training or evaluation, by name."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    buffers = mean.clone(), std.clone()
    y = function(leaves[0], *buffers, *leaves[1:], *arguments, **options)
    gradients = iter(torch.autograd.grad(y, [t for t in leaves if t is not None], dy))
    found = [y.detach(), *(None if t is None else next(gradients) for t in leaves), *buffers]
    return dict(zip(NAMES, found, strict=True))


def close(found, truth, tolerance):
    for name, tensor in found.items():
        if tensor is not None and name in truth:
            error = (tensor.double() - truth[name]).norm() / truth[name].norm()
            assert error <= tolerance, f"{name} is off by {error:.2g}"


@pytest.mark.parametrize(
    "dtype, layout, affine",
    [(dtype, layout, layout == "nchw") for dtype in DTYPES for layout in LAYOUTS] + [(torch.float32, "nchw", False)],
    ids=str,
)
def test_both_implementations_match_float64_in_training_and_evaluation(dtype, layout, affine, device):
    x, dy, mean, std, weight, bias = problem(dtype, layout, device)
    weight, bias = (weight, bias) if affine else (None, None)
    trained = reference.batch_renorm(x, mean, std, weight, bias, dy=dy)
    evaluated = reference.batch_renorm_eval(x, mean, std, weight, bias, dy)
    for function in (N.batch_renorm, composed.batch_renorm):
        found = passes(function, x, dy, mean, std, weight, bias, True)
        close(found, trained, DTYPES[dtype])
        assert found["y"].stride() == x.stride() and found["y"].dtype == dtype
        close(passes(function, x, dy, mean, std, weight, bias), evaluated, DTYPES[dtype])


def test_the_reference_is_autograds_of_the_definition_with_r_and_d_detached():
    x, dy, mean, std, weight, bias = problem(torch.float64)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    column = (1, -1, 1, 1)
    batch_mean = x.mean((0, 2, 3), keepdim=True)
    batch_std = (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-3).sqrt()
    r = (batch_std / std.view(column)).clamp(1 / 3, 3).detach()
    d = ((batch_mean - mean.view(column)) / std.view(column)).clamp(-5, 5).detach()
    y = ((x - batch_mean) / batch_std * r + d) * weight.view(column) + bias.view(column)
    truth = reference.batch_renorm(x, mean, std, weight, bias, dy=dy)
    torch.testing.assert_close(y, truth["y"])
    for gradient, name in zip(torch.autograd.grad(y, leaves, dy), ("dx", "dw", "db"), strict=True):
        torch.testing.assert_close(gradient, truth[name].detach())


def test_without_freedom_it_is_batch_norm_to_the_bit(device):
    x, dy, mean, std, weight, bias = problem(device=device)
    found = passes(N.batch_renorm, x, dy, mean, std, weight, bias, True, rmax=1.0, dmax=0.0)
    plain = passes(N.batch_norm, x, dy, mean, std, weight, bias, True, eps=1e-3)
    for name in ("y", "dx", "dw", "db"):
        assert torch.equal(found[name], plain[name]), name


def test_within_its_limits_training_gives_what_evaluation_gives(device):
    x, _, mean, std, weight, bias = problem(device=device)
    trained = N.batch_renorm(x, mean.clone(), std.clone(), weight, bias, True, rmax=1e3, dmax=1e3)
    torch.testing.assert_close(trained, N.batch_renorm(x, mean, std, weight, bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [N.batch_renorm, composed.batch_renorm], ids=["kernels", "composed"])
def test_limits_may_be_tensors(function, device):
    given = problem(device=device)
    for limits in (
        (2.0, 1.0),
        (torch.tensor(2.0), 1.0),
        (2.0, torch.tensor([1.0])),
        (torch.tensor(2), torch.tensor(1)),
    ):
        limits = [v.to(device) if isinstance(v, torch.Tensor) else v for v in limits]
        found = passes(function, *given, True, rmax=limits[0], dmax=limits[1])
        close(found, passes(function, *given, True, rmax=2.0, dmax=1.0), 1e-7)


def test_d_is_exact_beside_a_large_mean(device):
    x, dy, _, std, weight, bias = problem(device=device)
    x = x + 1e4
    mean = x.double().mean((0, 2, 3)).float() + 1
    truth = reference.batch_renorm(x, mean, std, weight, bias, dy=dy)
    close(passes(N.batch_renorm, x, dy, mean, std, weight, bias, True), truth, 2e-6)


def test_a_nan_stays_in_its_channel(device):
    x, dy, *vectors = problem(device=device)
    x[0, 2, 0, 0] = float("nan")
    for function in (N.batch_renorm, composed.batch_renorm):
        found = passes(function, x, dy, *vectors, True)
        for name in ("y", "dx"):
            assert found[name].isnan().movedim(1, 0).flatten(1).all(1).tolist() == [False, False, True, False, False]
        for name in ("dw", "running_mean", "running_std"):
            assert found[name].isnan().tolist() == [False, False, True, False, False]


def test_an_empty_batch_leaves_the_buffers_and_gives_zero_gradients(device):
    x, dy, *vectors = problem(device=device, shape=(0, 5, 3, 3))
    found = passes(N.batch_renorm, x, dy, *vectors, True)
    assert torch.equal(found["running_mean"], vectors[0]) and torch.equal(found["running_std"], vectors[1])
    assert not found["dw"].any() and not found["db"].any() and found["dx"].shape == x.shape


def test_the_papers_schedules_are_the_modules_defaults():
    steps = torch.tensor([0, 5000, 15000, 22500, 25000, 40000, 10**6])
    torch.testing.assert_close(PAPER_RMAX(steps), torch.tensor([1.0, 1.0, 1 + 4 / 7, 2.0, 1 + 8 / 7, 3.0, 3.0][:7]))
    torch.testing.assert_close(PAPER_DMAX(steps), torch.tensor([0.0, 0.0, 2.5, 4.375, 5.0, 5.0, 5.0]))
    module = normlib.BatchRenorm2d(5)
    assert (module.rmax, module.dmax, module.momentum) == (PAPER_RMAX, PAPER_DMAX, 0.01)


def test_a_module_follows_its_schedule_and_keeps_its_count_in_its_state(device):
    x, _, *_ = problem(device=device)
    module = normlib.BatchRenorm2d(5, rmax=Ramp(1.0, 2.0, 0, 2), dmax=lambda step: 1.0, device=device)
    plain = F.batch_norm(x, None, None, training=True, eps=1e-3)
    assert not torch.allclose(module(x), plain)
    assert list(module.state_dict()) == ["weight", "bias", "running_mean", "running_std", "num_batches_tracked"]
    again = normlib.BatchRenorm2d(5, device=device)
    again.load_state_dict(module.state_dict())
    assert again.num_batches_tracked == 1
    torch.testing.assert_close(again(x), plain)  # in its first 5000 steps
    module.eval()
    y = N.batch_renorm(x, module.running_mean, module.running_std, module.weight, module.bias)
    assert torch.equal(module(x), y) and module.num_batches_tracked == 1
    module.reset_running_stats()
    assert module.running_std.eq(1).all() and not module.running_mean.any() and module.num_batches_tracked == 0


@pytest.mark.parametrize(
    "dims, module", list(enumerate((normlib.BatchRenorm1d, normlib.BatchRenorm2d, normlib.BatchRenorm3d)))
)
def test_each_module_takes_inputs_of_its_rank_alone(dims, module):
    layer = module(3, affine=False)
    assert layer(torch.randn(2, 3, *[2] * (dims + 1))).shape == (2, 3, *[2] * (dims + 1))
    with pytest.raises(ValueError, match="expected"):
        layer(torch.randn(2, 3, 2, 2, 2, 2))
