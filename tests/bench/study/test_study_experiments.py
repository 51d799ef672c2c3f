"""Every experiment gives what its claim compares; a gate that claims something for a norm fails without that norm."""

from dataclasses import replace
from math import inf, isfinite

import pytest
import torch
from torch import nn

from bench.study import data, networks
from bench.study.experiments import BY_NAME, ics_linear
from bench.study.gradients import shift
from bench.study.runner import run_one
from bench.study.study import judged
from bench.study.training import SCALES, StudySetting, diverged, end
from normlib import dispatch

CPU = torch.device("cpu")


@pytest.fixture
def composed(monkeypatch):
    """PyTorch's operators run the layers, not the interpreter, which takes a hundred times as long."""
    monkeypatch.setattr(dispatch, "CPU_RUNS_KERNELS", False)


@pytest.fixture
def without_norms(monkeypatch):
    """Every norm is the identity; noise stays noise."""
    real = networks.norm
    nothing = lambda name, dims=1, **options: (
        real(name) if name in ("plain", "noise") else lambda features: nn.Identity()
    )
    monkeypatch.setattr(networks, "norm", nothing)


@pytest.fixture
def little_regression(monkeypatch):
    """The deep linear network, whose size follows no scale."""
    monkeypatch.setattr(ics_linear, "_IMAGES", 50)
    monkeypatch.setattr(ics_linear, "_STEPS", 2)


def small(steps):
    return StudySetting(data.load("digits"), CPU, replace(SCALES["pilot"], steps=steps))


def held(name, steps, *texts):
    """Of the gates of one experiment that say these words, run at a small scale with seed 0: whether each holds."""
    experiment = BY_NAME[name]
    runs = [run_one(small(steps), (name, condition, 0)) for condition in experiment.conditions]
    assert [run.reason for run in runs if run.state == "failed"] == []
    gates = [v for v in judged(experiment, runs) if not texts or any(text in v.gate.text for text in texts)]
    assert gates
    return [verdict.outcomes[0] for verdict in gates]


@pytest.mark.parametrize("experiment", BY_NAME.values(), ids=BY_NAME)
def test_an_experiment_gives_what_its_gates_compare_and_its_figure_draws(experiment, composed, little_regression):
    for condition in experiment.conditions:
        run = run_one(small(3), (experiment.name, condition, 0))
        assert run.state != "failed", run.reason
        assert {name for gate in experiment.gates for of, name in gate.shows if of == condition} <= set(run.values)
        if experiment.figure.kind == "bars":
            assert experiment.figure.series in run.values
            continue
        points = run.series[experiment.figure.series]
        assert set(points) == ({"x", "low", "high"} if experiment.figure.kind == "bands" else {"x", "y"})
        assert len({len(values) for values in points.values()}) == 1


# With the steps by which the real layers hold them, so that the identity has something to lose.
@pytest.mark.parametrize(
    ("name", "steps", "gates"), [("noisy_bn", 60, ("auc",)), ("lp_norms", 60, ("l1", "l2")), ("sigmoid", 60, ())]
)
def test_a_gate_that_claims_a_norms_advantage_holds_with_the_norm_and_fails_without(
    name, steps, gates, composed, request
):
    assert all(held(name, steps, *gates))
    request.getfixturevalue("without_norms")
    assert not any(held(name, steps, *gates))


# Training until they hold takes too long for a test; where all conditions are one network they must fail all the same.
@pytest.mark.parametrize(
    ("name", "gate"),
    [
        ("landscape", "range"),
        ("predictiveness", "change"),
        ("smoothness", "smoothness"),
        ("learning_rate", "BN"),
        ("initialization", "BN"),
        ("small_batches", "batch 2"),
        ("small_batches", "batch 4"),
        ("moving_averages", "weight norm"),
        ("ics_linear", "cosine"),  # of which either may hold, but not both
    ],
)
def test_the_gates_of_a_claim_do_not_hold_without_the_norm(name, gate, composed, without_norms, little_regression):
    assert not all(held(name, 3, gate))


def test_interpreted_kernels_and_pytorchs_operators_give_the_same_losses(monkeypatch):
    images = data.load("digits")
    doubled = replace(small(3), data=replace(images, x=images.x.double()))

    def losses():
        torch.manual_seed(0)
        network = networks.mlp(images.image, images.classes, networks.norm("BN"), depth=2, width=8).double()
        return doubled.train(network, 0, size=16)

    monkeypatch.setattr(dispatch, "CPU_RUNS_KERNELS", True)
    interpreted = losses()
    monkeypatch.setattr(dispatch, "CPU_RUNS_KERNELS", False)
    # float64 rounds at 1e-16, and three steps carry it on.
    torch.testing.assert_close(interpreted, losses(), rtol=1e-12, atol=0)


def test_measuring_the_shift_leaves_training_as_it_is(composed):
    six_steps = small(6)
    torch.manual_seed(0)
    alone = six_steps.train(six_steps.network("BN"), 0)
    torch.manual_seed(0)
    network = six_steps.network("BN")
    look = lambda x, y: shift(network, lambda: nn.functional.cross_entropy(network(x), y), 0.1)
    assert six_steps.watch(network, 0, look, looks=6)[0] == alone


def test_the_shift_of_two_matrices_is_what_the_definition_says():
    """y = b a x with loss y: dL/db = a x, so a step of a by lr b x turns it to (a - lr b x) x."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        network[0].weight.fill_(3.0)
        network[1].weight.fill_(2.0)
    x = torch.full((1, 1), 0.5, dtype=torch.float64)
    distance, cosine = shift(network, lambda: network(x).sum(), lr=0.1)
    assert distance == pytest.approx(0.1 * 2.0 * 0.5 * 0.5)
    assert cosine == pytest.approx(1.0)


def test_the_noise_without_a_norm_is_that_of_noisy_batch_norm():
    """Of zeros what is added is left, .2 wide around a mean that each step draws; large values show the factor."""
    noise = networks.StudyNoise()
    centres = []
    for _ in range(20):
        shift = noise(torch.zeros(100, 100))
        centres.append(float(shift.mean()))
        assert 0.19 < float(shift.max() - shift.min()) <= 0.2
        assert float(shift.var()) == pytest.approx(0.2**2 / 12, rel=0.05)
    assert -0.51 < min(centres) < -0.2
    assert 0.2 < max(centres) < 0.51
    factors = torch.stack([noise(torch.full((100, 100), 1e6)) / 1e6 for _ in range(20)])
    assert 0.99 < float(factors.mean((1, 2)).min()) < 1.1 < float(factors.mean((1, 2)).max()) < 1.26
    assert float(factors.std((1, 2)).mean()) == pytest.approx(0.1, rel=0.02)
    assert noise.eval()(torch.zeros(3)).tolist() == [0.0] * 3


def test_no_gradient_passes_through_moving_averages_and_the_batch_moves_them_first(composed):
    layer = networks.MovingAverages(2)
    x = torch.randn(16, 2, requires_grad=True)
    y = layer(x)
    mean, var = 0.1 * x.mean(0), 0.9 + 0.1 * x.var(0)
    torch.testing.assert_close(y, (x - mean) * (var + layer.eps).rsqrt())
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx, (var + layer.eps).rsqrt().expand_as(x).detach())


@pytest.mark.parametrize(("name", "matrices"), [("vgg11", 11), ("vgg16", 16)])
def test_vgg_has_as_many_layers_with_weights_as_its_name_says(name, matrices):
    plain, normed = (networks.vgg(name, 10, networks.norm(norm, dims=2)) for norm in ("plain", "BN"))
    assert len(networks.matrices(plain)) == len(networks.matrices(normed)) == matrices
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in normed) == matrices - 1


def test_a_loss_that_diverged_is_infinite_from_there_on(composed):
    setting = small(8)
    losses = setting.train(setting.network("plain"), 0, lr=1e6)
    assert len(losses) == 8
    assert isfinite(losses[0])
    assert losses[-1] == inf == end(losses)
    assert "not finite from step" in diverged(losses)


def test_batches_show_every_image_once_before_any_comes_again():
    numbered = replace(small(4), data=replace(data.load("digits"), x=torch.arange(10.0), y=torch.arange(10)))
    seen = torch.cat([x for x, _ in numbered.batches(3, 5, 4)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
