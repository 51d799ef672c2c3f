"""Identities of the literature about a linear layer with a norm behind it, in float64."""

import pytest
import torch

from normlib import functional as N

# So small beside a variance of about 1 that float64 does not see it, and no division by zero.
NO_EPS = 1e-30
ROUNDING = 1e-12


def draw(device, samples=40, features=6, units=5):
    """Inputs of correlated features with a mean, v of (units, features), g and b."""
    mix, offset = torch.randn(features, features), torch.randn(features)
    x = torch.randn(samples, features) @ mix + offset
    tensors = x, torch.randn(units, features), torch.rand(units) + 0.5, torch.randn(units)
    return [t.to(device, torch.float64) for t in tensors]


def norm(t, weight=None, bias=None, eps=NO_EPS):
    return N.batch_norm(t, None, None, weight, bias, True, eps=eps)


def close(found, expected):
    assert (found - expected).norm() <= ROUNDING * expected.norm()


@pytest.mark.parametrize("eps", [NO_EPS, 1e-3])
def test_batch_norm_is_a_reparameterization_in_the_covariances_geometry(eps, device):
    # Kohler et al., "Exponential convergence rates for batch normalization" (2019): with S the covariance
    # of x, BN(v x) = g v (x - mean) / ||v||_S + b, where ||v||_S^2 = v' S v; eps is added to that square.
    x, v, g, b = draw(device)
    centred = x - x.mean(0)
    covariance = centred.t() @ centred / len(x)
    length = (torch.einsum("ui,ij,uj->u", v, covariance, v) + eps).sqrt()
    close(norm(x @ v.t(), g, b, eps), centred @ (g / length * v.t()) + b)


def test_on_whitened_inputs_batch_norm_is_weight_norm(device):
    # The same geometry with S = 1, as Salimans and Kingma note in their section 2.2.
    x, v, g, b = draw(device)
    centred = x - x.mean(0)
    values, vectors = torch.linalg.eigh(centred.t() @ centred / len(x))
    white = centred @ vectors / values.sqrt()
    close(norm(white @ v.t(), g, b), white @ N.weight_norm(v, g[:, None]).t() + b)


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_the_scale_of_the_weights_before_batch_norm_does_not_matter(factor, device):
    # Ioffe and Szegedy (2015), section 3.3: BN((a W) u) = BN(W u), and the gradient of a W is that of W over a.
    x, v, g, b = draw(device)
    dy = torch.randn(len(x), len(v), dtype=torch.float64, device=device)
    found = []
    for scaled in (v, factor * v):
        weights, inputs = scaled.clone().requires_grad_(), x.clone().requires_grad_()
        y = norm(inputs @ weights.t(), g, b)
        found.append((y.detach(), *torch.autograd.grad(y, (inputs, weights), dy)))
    (y, dx, dv), (y_scaled, dx_scaled, dv_scaled) = found
    close(y_scaled, y)
    close(dx_scaled, dx)
    close(dv_scaled * factor, dv)
    # What does not change along v has no gradient there.
    assert ((dv * v).sum(1).abs() <= ROUNDING * dv.norm(dim=1) * v.norm(dim=1)).all()


def test_theorem_4_1_gives_the_gradients_size_as_an_equality(device):
    # Santurkar et al., "How does batch normalization help optimization?" (2018), theorem 4.1, of which the inequality
    # is an equality where the output's gradients are the same: for each of the units,
    # ||dt||^2 = gamma^2 / sigma^2 (||dy||^2 - <1, dy>^2 / m - <dy, x_hat>^2 / m).
    x, v, gamma, b = draw(device)
    t = (x @ v.t()).requires_grad_()
    # Not of mean zero, nor free of x_hat: both terms that are taken away must count.
    dy = torch.randn(t.shape, dtype=torch.float64, device=device) + 0.5 + 0.01 * t.detach()
    y = norm(t, gamma, b)
    (dt,) = torch.autograd.grad(y, t, dy)
    m, x_hat = len(t), norm(t.detach())
    variance = t.detach().var(0, correction=0)
    along_one, along_x_hat = dy.sum(0).square() / m, (dy * x_hat).sum(0).square() / m
    close(dt.square().sum(0), gamma.square() / variance * (dy.square().sum(0) - along_one - along_x_hat))
    assert (along_one + along_x_hat > 0.05 * dy.square().sum(0)).any()
