"""Synchronized batch norm's parts in one process: what tests/distributed need not start others for."""

import copy

import pytest
import torch
from errors import assert_right
from torch import nn

import normlib
from normlib import reference
from normlib import sync_batch_norm_formulas as formulas
from normlib.kernels.batch_norm import sync as kernels
from normlib.kernels.plan import Device

EPS, MOMENTUM = 1e-5, 0.3
STEPS = {"kernels": kernels, "formulas": formulas}


@pytest.fixture(params=STEPS)
def steps(request, device):
    if device.type != "cpu" and request.param == "formulas":
        pytest.skip("formulas are for CPU tensors")
    return STEPS[request.param]


def shared(steps, x, shares, dy, weight, bias):
    """Returns (y, dx, dw, db, running_mean, running_var) that processes with these shares of x compute."""
    parts, gradients = x.split(shares), dy.split(shares)
    buffers = torch.zeros_like(weight), torch.ones_like(weight)
    messages = torch.stack([steps.moments(part) for part in parts])
    mean, rstd, count = steps.merge_messages(messages, *buffers, MOMENTUM, EPS)
    y = torch.cat([steps.normalize(part, mean, rstd, weight, bias) for part in parts])
    sums = torch.stack([steps.sums(g, part, mean, rstd) for g, part in zip(gradients, parts, strict=True)])
    total = steps.add_sums(sums)
    pairs = zip(gradients, parts, strict=True)
    dx = torch.cat([steps.input_gradient(g, part, mean, rstd, weight, total, count) for g, part in pairs])
    return y, dx, *total, *buffers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shares", [(2, 1), (0, 1, 4), (3, 0, 0), (1, 2, 3, 1, 0)], ids=str)
def test_shares_give_the_whole_batchs_results(steps, shares, dtype, device):
    stats = torch.float64 if dtype == torch.float64 else torch.float32
    x = (torch.randn(sum(shares), 5, 4, 3, dtype=torch.float64, device=device) * 2 + 3).to(dtype)
    dy = torch.randn(x.shape, device=device).to(dtype)
    weight, bias = torch.randn(2, 5, dtype=stats, device=device)
    found = shared(steps, x, shares, dy, weight, bias)
    truth = reference.batch_norm(x, weight, bias, EPS, dy)
    running = MOMENTUM * truth["mean"], 1 - MOMENTUM + MOMENTUM * truth["var_unbiased"]
    wanted = (*(truth[name] for name in ("y", "dx", "dw", "db")), *running)
    for name, out, want in zip(("y", "dx", "dw", "db", "running_mean", "running_var"), found, wanted, strict=True):
        assert_right(out, want, name)


@pytest.mark.parametrize("ranks", [1, 3, 64, 1000])
def test_statistics_of_many_processes_merge_exactly_at_any_mean(steps, ranks, device):
    counts = torch.randint(1, 2**24, (ranks,), dtype=torch.float64) * 4096 + 1  # more than float32 counts to
    if ranks > 1:
        counts[:: max(ranks // 4, 2)] = 0  # an empty first share, and some others
    means, variances = torch.randn(ranks, 3, dtype=torch.float64) + 1e4, torch.rand(ranks, 3, dtype=torch.float64)
    means, variances = (torch.where(counts[:, None] > 0, t, 0.0) for t in (means, variances))
    high = means.float()
    m2 = (variances * counts[:, None]).float()
    pairs = counts.float(), (counts - counts.float()).float()
    message = torch.cat([high, (means - high).float(), m2, torch.stack(pairs, 1)], 1).to(device)
    mean, rstd, count = steps.merge_messages(message, None, None, 0.0, EPS)
    n = counts.sum()
    truth = (counts[:, None] * means).sum(0) / n
    var = (m2.double() + counts[:, None] * (means - truth).square()).sum(0) / n
    assert float((mean.double().sum(0).cpu() - truth).abs().max()) < 1e-10  # 1e4 in 48 bits
    assert_right(rstd.cpu(), (var + EPS).rsqrt(), "rstd")
    assert float(count) == pytest.approx(float(n), rel=2**-24)


@pytest.mark.parametrize("multiprocessors", [1, 7])
def test_a_message_holds_a_shares_moments_and_exact_count(multiprocessors, device):
    x = torch.randn(5, 9, 7, 7, device=device) + 1e4
    message = kernels.moments(x, Device(multiprocessors))
    truth = reference.batch_norm(x)
    assert_right((message[:9].double() + message[9:18].double() - 1e4).float(), truth["mean"] - 1e4, "mean")
    assert_right(message[18:27], truth["var"] * 245, "M2")
    assert message[27:].tolist() == [245.0, 0.0]


def test_a_nan_stays_in_its_channel(steps, device):
    x = torch.randn(6, 4, 5, device=device)
    x[5, 2, 1] = torch.nan
    y, dx, *_ = shared(steps, x, (2, 4), torch.randn_like(x), *torch.randn(2, 4, device=device))
    for t in (y, dx):
        assert t[:, 2].isnan().all() and t[:, [0, 1, 3]].isfinite().all()


def test_without_other_processes_it_is_batch_norm(device):
    x = torch.randn(4, 5, 3, 3, device=device)
    ours, plain = normlib.SyncBatchNorm(5).to(device), normlib.BatchNorm2d(5).to(device)
    for _ in range(2):
        assert torch.equal(ours(x), plain(x))
        ours.eval(), plain.eval()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        ours.train()(x[:1, :, :1, :1])


def test_arguments_and_state_are_pytorchs():
    theirs = nn.SyncBatchNorm(7, 1e-3, 0.2, True, True)
    ours = normlib.SyncBatchNorm(7, 1e-3, 0.2, True, True)
    ours.load_state_dict(theirs.state_dict())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert ours.extra_repr() == theirs.extra_repr()
    meta = normlib.SyncBatchNorm(7, affine=False, track_running_stats=False, device="meta", dtype=torch.float64)
    assert not list(meta.parameters()) and not list(meta.buffers())


def test_conversion_keeps_modules_and_can_be_reverted():
    shared = nn.BatchNorm1d(3)
    model = nn.Sequential(shared, nn.Sequential(normlib.BatchNorm2d(4), shared), nn.SyncBatchNorm(5), nn.LayerNorm(3))
    before = copy.deepcopy(model.state_dict())
    kinds = [type(m) for m in model.modules()]
    assert normlib.convert_sync_batchnorm(model) is model
    assert model[0] is model[1][1] is shared
    assert [type(m) for m in (model[0], model[1][0], model[2])] == [normlib.SyncBatchNorm] * 3
    assert shared.process_group is None and model.state_dict().keys() == before.keys()
    assert normlib.convert_sync_batchnorm(model) is model, "and again"
    assert "SyncBatchNorm" not in str(normlib.convert(model, ops=("batch_norm",)).left_alone)
    normlib.revert(model)
    assert [type(m) for m in model.modules()] == kinds


def test_what_has_no_synchronized_form_is_refused_before_anything_changes():
    plain = nn.BatchNorm2d(3)
    for other, message in (
        (normlib.BatchNorm2d(3, activation="relu"), "without its activation"),
        (normlib.NoisyBatchNorm2d(3), "without its noise"),
        (nn.LazyBatchNorm2d(), "its first batch"),
    ):
        with pytest.raises(ValueError, match=message):
            normlib.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(plain, other))
        assert type(plain) is nn.BatchNorm2d
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        normlib.convert_sync_batchnorm(nn.BatchNorm2d)
