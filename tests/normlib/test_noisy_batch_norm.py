"""Noisy batch norm: the words that all draw, the distributions of the paper, and the norm before the noise."""

import pytest
import torch
import triton
import triton.language as tl

import normlib
from normlib import composed, philox, reference
from normlib import functional as N
from normlib.kernels.batch_norm import noise
from normlib.kernels.batch_norm.noisy import noisy_batch_norm_forward
from normlib.kernels.plan import Device

SHAPE = (4, 5, 3, 3)
RANGES = [0.5, 1.25, 0.1, 0.1]
DTYPES = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float64: 1e-12}  # some roundings; one of 8 bits


@triton.jit
def _words_kernel(out_ptr, seed_ptr, position_ptr, P: tl.constexpr, C: tl.constexpr):
    position = tl.load(position_ptr + tl.arange(0, P))[None, :]
    channel = tl.arange(0, C)[:, None]
    a, b, c, d = noise.words(tl.load(seed_ptr), position, channel, noise.UNITS)
    at = out_ptr + channel * P + tl.arange(0, P)[None, :]
    tl.store(at, a.to(tl.int64))
    tl.store(at + C * P, b.to(tl.int64))
    tl.store(at + 2 * C * P, c.to(tl.int64))
    tl.store(at + 3 * C * P, d.to(tl.int64))


@pytest.mark.parametrize("seed", [0, 1, -1, 0x123456789ABCDEF])
def test_kernels_and_tensors_draw_the_same_words(seed, device):
    position = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**32, 2**40 + 7, 2**62, 5], device=device)
    out, seed = torch.empty(4, 8, 8, dtype=torch.int64, device=device), torch.tensor(seed, device=device)
    _words_kernel[(1,)](out, seed, position, P=8, C=8)
    channel = torch.arange(8, device=device)[:, None]
    assert torch.equal(out, torch.stack(philox.words(seed, position[None, :], channel, philox.UNITS)))


def test_the_words_are_philoxs():
    """The first and the second known answer of Random123's philox4x32-10."""
    zero = torch.tensor(0)
    assert [int(w) for w in philox.words(zero, zero, zero, 0)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = torch.tensor(-1)
    assert [int(w) for w in philox.words(ones, ones, ones, 0xFFFFFFFF)] == [
        0x408F276D,
        0x41C83B0E,
        0xA20BC7C6,
        0x6D5451FD,
    ]


@triton.jit
def _normal_kernel(out_ptr, radius_ptr, angle_ptr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    radius, angle = (tl.load(radius_ptr + i).to(tl.uint32), tl.load(angle_ptr + i).to(tl.uint32))
    tl.store(out_ptr + i, noise.standard_normal(radius, angle, ACC))


@pytest.mark.parametrize(
    # The truth itself rounds 2 pi u, up to 6, in float64.
    "dtype, kind, tolerance",
    [(torch.float32, tl.float32, 4e-7), (torch.float64, tl.float64, 4e-15)],
)
def test_a_normal_number_is_box_and_mullers_to_a_few_ulp(dtype, kind, tolerance, device):
    radius, angle = torch.randint(2**32, (2, 4096), device=device)
    angle[:5] = torch.tensor([0, 2**30, 2**31, 2**32 - 1, 2**31 + 2**30])
    out = torch.empty(4096, dtype=dtype, device=device)
    _normal_kernel[(1,)](out, radius, angle, ACC=kind, BLOCK=4096)
    truth = philox.normal(radius, angle, torch.float64)
    size = philox.normal(radius, torch.zeros_like(angle), torch.float64)  # only the radius
    assert ((out.double() - truth).abs() <= tolerance * size).all()


@pytest.mark.parametrize("per", ["layer", "unit"])
def test_mu_and_sigma_are_uniform_within_the_papers_ranges_and_not_normal(per):
    """An article says that they are normal; normal numbers of these moments would leave the ranges."""
    x = torch.zeros(1, 2000 if per == "unit" else 1, 1)
    seeds = torch.tensor(0) if per == "unit" else torch.arange(2000).view(-1, 1, 1)
    sigma, mu = philox.noise_of(x, seeds, per == "unit", [0.5, 1.25, 0.0, 0.0], torch.float64)
    for values, least, most in ((mu, -0.5, 0.5), (sigma, 1.0, 1.25)):
        assert values.min() >= least and values.max() <= most
        # Kolmogorov's distance of 2000 uniform numbers is below .044 but once in a thousand times.
        steps = (values.flatten().sort().values - least) / (most - least) - torch.linspace(0, 1, 2000)
        assert steps.abs().max() < 0.044


def test_each_elements_noise_is_uniform_and_normal_about_mu_and_sigma():
    s, m = philox.noise_of(torch.zeros(100, 2, 10, 10), torch.tensor(3), True, RANGES, torch.float64)
    of_s, of_m = (t.movedim(1, 0).flatten(1) for t in (s, m))
    exact, centre = philox.noise_of(torch.zeros(1, 2, 1), torch.tensor(3), True, [0.5, 1.25, 0.0, 0.0], torch.float64)
    offset, z = (of_m - centre.view(2, 1)) / 0.1, (of_s - exact.view(2, 1)) / 0.1
    assert offset.abs().max() <= 1
    # Six standard errors of the mean and of the variance of 10000 numbers.
    assert offset.mean(1).abs().max() < 6 * (1 / 3) ** 0.5 / 100 and (offset.var(1) - 1 / 3).abs().max() < 0.02
    assert z.mean(1).abs().max() < 0.06 and (z.var(1) - 1).abs().max() < 0.09
    assert (z.abs() > 2).double().mean() == pytest.approx(0.0455, abs=0.01)
    assert torch.corrcoef(torch.cat([offset, z])).fill_diagonal_(0).abs().max() < 0.06


def problem(dtype, layout, device):
    wide = torch.promote_types(dtype, torch.float32)
    form = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    x, dy = (torch.randn(SHAPE, device=device).mul(2).add(1).to(dtype).to(memory_format=form) for _ in "xy")
    return x, dy, *torch.randn(2, 5, device=device, dtype=wide)


@pytest.mark.parametrize("per, affine", [("layer", True), ("unit", False)])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_implementations_match_float64_on_the_same_words(dtype, layout, per, affine, device):
    x, dy, *parameters = problem(dtype, layout, device)
    seed = torch.tensor(5, device=device)
    given = parameters if affine else [None, None]
    truth = reference.noisy_batch_norm(x, seed, *given, per_unit=per == "unit", dy=dy)
    for function in (N.noisy_batch_norm, composed.noisy_batch_norm):
        leaves = [t.clone().requires_grad_() for t in (x, *parameters)]
        y = function(leaves[0], None, None, *(leaves[1:] if affine else given), True, seed=seed, per=per)
        assert y.dtype == dtype and y.stride() == x.stride()
        gradients = torch.autograd.grad(y, leaves if affine else leaves[:1], dy)
        for name, tensor in zip(("y", "dx", "dw", "db"), (y, *gradients), strict=False):
            assert (tensor.double() - truth[name]).norm() <= DTYPES[dtype] * truth[name].norm(), name


def test_the_noise_depends_on_no_layout_plan_or_grid(device):
    x = torch.randn(6, 70, 5, 5, device=device)
    seed, found = torch.tensor(9, device=device), []
    for form, multiprocessors in ((torch.contiguous_format, 1), (torch.contiguous_format, 3), (torch.channels_last, 2)):
        given = (x.to(memory_format=form), None, None, None, None, 0.0, 1e-5, seed, True, RANGES)
        found.append(noisy_batch_norm_forward(*given, Device(multiprocessors))[0])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)


def test_without_noise_it_is_batch_norm(device):
    x, _, weight, bias = problem(torch.float32, "nchw", device)
    ranges = {"mean_limit": 0.0, "std_limit": 1.0, "mean_spread": 0.0, "std_spread": 0.0}
    buffers = [(torch.zeros(5, device=device), torch.ones(5, device=device)) for _ in "ab"]
    y = N.noisy_batch_norm(x, *buffers[0], weight, bias, True, seed=1, **ranges)
    assert torch.equal(y, N.batch_norm(x, *buffers[1], weight, bias, True))
    assert all(torch.equal(a, b) for a, b in zip(*buffers, strict=True))
    y = N.noisy_batch_norm(x, *buffers[0], weight, bias)
    assert torch.equal(y, N.batch_norm(x, *buffers[0], weight, bias))


@pytest.mark.parametrize("training", [True, False])
def test_manual_seed_repeats_a_modules_steps_and_evaluation_has_no_noise(training, device):
    x = problem(torch.float32, "nchw", device)[0]
    module = normlib.NoisyBatchNorm2d(5, device=device, track_running_stats=False).train(training)
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append((module(x), module(x)))
    assert torch.equal(outputs[0][0], outputs[1][0]) and torch.equal(outputs[0][1], outputs[1][1])
    assert torch.equal(outputs[0][0], outputs[0][1]) is not training
    assert torch.equal(outputs[0][0], outputs[2][0]) is not training
