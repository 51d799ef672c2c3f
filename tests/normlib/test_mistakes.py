"""Mistakes in five articles on batch normalization: that each is one, and that the kernels do not make it.

The articles, by the numbers used here:

    000  A. Kathuria, "Intro to optimization in deep learning: Busting the myth about batch normalization"
    001  A. Deb, "Batch normalization"
    002  "Primers: Batchnorm"

A wrong formula is transcribed as its article writes it, and held against autograd or the definition in float64. The
mistakes of the other two articles are about noise that is added to a network, and about figures.
"""

from collections.abc import Callable

import pytest
import torch
from errors import ROUNDINGS, assert_right, relative_error

import normlib
from normlib import functional as N
from normlib import reference

EPS = 1e-5
POSITIONS = (0, 2, 3)


def draw(device, offset=1.5, spread=0.5, shape=(6, 8, 5, 5)):
    """(x, weight, bias, dy) of a batch norm, in float32: the same numbers on every device."""
    x = torch.randn(shape) * spread + offset
    weight, bias = (torch.randn(shape[1]) for _ in range(2))
    return tuple(t.to(device) for t in (x, weight, bias, torch.randn(shape)))


def column(t):
    return t.double()[None, :, None, None]


def total(t):
    return t.sum(POSITIONS, keepdim=True)


def moments(x):
    """(mean, biased variance, elements) of each channel, in float64."""
    mean = x.double().mean(POSITIONS, keepdim=True)
    return mean, (x.double() - mean).square().mean(POSITIONS, keepdim=True), x.numel() // x.shape[1]


def graph_gradients(x, weight, dy, variance: Callable):
    """(dmu, dsigma2, dx) by autograd, through mu and sigma2 = variance(x, mu) as nodes of the graph, in float64."""
    x = x.double().requires_grad_()
    mu = x.mean(POSITIONS, keepdim=True)
    sigma2 = variance(x, mu)
    y = column(weight) * (x - mu) / (sigma2 + EPS).sqrt()
    return torch.autograd.grad(y, (mu, sigma2, x), dy.double())


def two_pass(x, mu):
    return (x - mu).square().mean(POSITIONS, keepdim=True)


def one_pass(x, mu):
    """Article 001's second equation."""
    return x.square().mean(POSITIONS, keepdim=True) - mu.square()


def article_001_backward(x, weight, dy, summed):
    """Article 001's (dmu, dsigma2, dx); `summed` is what its sums for dmu and dsigma2 have: it writes dl/dx_i."""
    mu, sigma2, m = moments(x)
    d, root = x.double() - mu, (sigma2 + EPS).sqrt()
    dmu = total(summed * -1 / root)
    dsigma2 = total(summed * -1 / 2 * d / root**3)
    return dmu, dsigma2, column(weight) * dy.double() / root + dsigma2 * 2 * d / m + dmu / m


def kernel_gradients(x, weight, bias, dy):
    x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
    y = N.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
    return torch.autograd.grad(y, (x, weight, bias), dy)


# ------------------------------------------------------------------------------------- 1: dl/dx_i for dl/dx_hat_i


def test_article_001_sums_the_wrong_gradient_for_dmu_and_dsigma2(device):
    """Its equations for dl/dmu and dl/dsigma^2 have dl/dx_i where dl/dx_hat_i belongs.

    The sum of dl/dx_i is 0, and that of dl/dx_i x_hat_i all but 0: both derivatives vanish, and dx lacks two terms.
    """
    x, weight, bias, dy = draw(device)
    dmu, dsigma2, dx = graph_gradients(x, weight, dy, two_pass)
    wrong_dmu, wrong_dsigma2, wrong_dx = article_001_backward(x, weight, dy, summed=dx)
    assert wrong_dmu.norm() < 1e-10 * dmu.norm()  # float64's roundings of 150 terms
    assert wrong_dsigma2.norm() < 1e-3 * dsigma2.norm()  # eps / (variance + eps), 4e-5, is what remains
    lost = relative_error(wrong_dx, dx)
    assert lost > 1e-2

    right = article_001_backward(x, weight, dy, summed=column(weight) * dy.double())
    for found, truth in zip(right, (dmu, dsigma2, dx), strict=True):
        assert relative_error(found, truth) < 1e-12

    found = kernel_gradients(x, weight, bias, dy)[0]
    assert_right(found, dx, "dx")
    assert relative_error(found, wrong_dx) > lost / 2


# ------------------------------------------------------------------- 2: one-pass variance, two-pass derivatives


def test_article_001_mixes_derivatives_of_two_graphs_that_add_up_all_the_same(device):
    """Its second equation is the one-pass variance, whose dl/dmu has a term -2 mu dl/dsigma^2 that it leaves out.

    Its dsigma^2/dx_i = 2 (x_i - mu) / m is the two-pass variance's; the one-pass variance's is 2 x_i / m. What is left
    out of one is left out of the other, so dx is right. The kernel has the closed form of both.
    """
    x, weight, bias, dy = draw(device)
    dmu, dsigma2, dx = graph_gradients(x, weight, dy, one_pass)
    article = article_001_backward(x, weight, dy, summed=column(weight) * dy.double())
    mean, variance, m = moments(x)
    assert relative_error(article[0], dmu) > 0.1
    assert relative_error(article[0] - 2 * mean * dsigma2, dmu) < 1e-10
    assert relative_error(article[2], dx) < 1e-10

    rstd = (variance + EPS).rsqrt()
    x_hat, dy64 = (x.double() - mean) * rstd, dy.double()
    closed = column(weight) * rstd / m * (m * dy64 - total(dy64) - x_hat * total(dy64 * x_hat))
    assert relative_error(closed, dx) < 1e-10
    assert_right(kernel_gradients(x, weight, bias, dy)[0], closed, "dx")


# -------------------------------------------------------------------------------- 3: the one-pass variance in float32


def statistics_of(norm, x):
    """(y, rstd) over all of a row or channel: x is (4, 1000)."""
    if norm == "layer_norm":
        y, _, rstd = torch.ops.normlib.layer_norm(x, (x.shape[1],), None, None, EPS)
        return y, rstd
    y, _, rstd = torch.ops.normlib.batch_norm_train(x.T.contiguous(), None, None, None, None, 0.0, EPS)
    return y.T, rstd


# Mean over deviation, and the least error of a variance of 1 that float32 leaves: near 1e8 and 1e10 its numbers are
# multiples of 8 and 1024, so a difference of two is 0, or off by 7 and more. Near 1e6 they are multiples of 1/16, and
# none of these four variances is within 1e-3 of one.
OFFSETS = {1e3: 1e-3, 1e4: 0.9, 1e5: 0.9}


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("norm", ["layer_norm", "batch_norm"])
def test_article_001s_variance_is_lost_in_float32_and_the_kernels_is_not(norm, offset, device):
    """Its second equation, E[x^2] - mu^2: of a variance of 1 it may make 1.06, 0 or -1024."""
    x = (torch.randn(4, 1000) + offset).to(device)
    truth = reference.layer_norm(x, (1000,), eps=EPS)
    variance = truth["rstd"] ** -2 - EPS
    one_pass_variance = x.square().mean(1) - x.mean(1).square()
    assert bool(((one_pass_variance.double() - variance).abs() > OFFSETS[offset]).all())

    y, rstd = statistics_of(norm, x)
    assert_right(rstd, truth["rstd"], "rstd")
    assert_right(y, truth["y"], "y")


# ------------------------------------------------------------------------------ 4: gamma, beta and m - 1 in article 000


def test_gamma_and_beta_are_parameters_and_not_article_000s_hyperparameters(device):
    """Below its equation 5 they are "hyperparameters", which no gradient would reach."""
    x, weight, bias, dy = draw(device)
    layer = normlib.BatchNorm2d(x.shape[1], device=device)
    layer.load_state_dict({**layer.state_dict(), "weight": weight, "bias": bias})
    assert dict(layer.named_parameters()).keys() == {"weight", "bias"}
    layer(x).backward(dy)
    truth = reference.batch_norm(x, weight, bias, layer.eps, dy)
    for parameter, name in ((layer.weight, "dw"), (layer.bias, "db")):
        assert bool((truth[name].abs() > 1e-3).all())
        assert_right(parameter.grad, truth[name], name)


def test_the_outputs_deviation_is_not_article_000s_gamma(device):
    """Below its equation 5: "a standard deviation of gamma". It is |gamma| sqrt(var / (var + eps))."""
    x, weight, bias, _ = draw(device, spread=0.01)
    x, eps = x.double(), 1e-4  # the variance's size
    y = N.batch_norm(x, None, None, weight.double(), bias.double(), training=True, eps=eps)
    deviation = y.var(POSITIONS, correction=0).sqrt()
    variance = moments(x)[1].flatten()
    assert bool(((deviation / weight.double() - 1).abs() > 0.1).all())
    assert_right(deviation, weight.double().abs() * (variance / (variance + eps)).sqrt(), "deviation")
    assert_right(y.mean(POSITIONS), bias.double(), "mean")


def test_m_less_1_belongs_to_the_running_variance_and_not_to_article_000s_test_batch(device):
    """It repeats its equation 3 with m - 1 for m, "in case we have the option of using batches at test time"."""
    x, weight, bias, _ = draw(device, shape=(2, 8, 2, 2))
    mean, biased, m = moments(x)
    unbiased = biased * m / (m - 1)
    truth, article = (
        (x.double() - mean) / (variance + EPS).sqrt() * column(weight) + column(bias) for variance in (biased, unbiased)
    )
    assert relative_error(article, truth) > 1e-2

    running_mean, running_var = torch.zeros_like(weight), torch.ones_like(weight)
    y = N.batch_norm(x, running_mean, running_var, weight, bias, training=True, momentum=0.25, eps=EPS)
    assert_right(y, truth, "y")
    assert_right(running_var, 0.75 + 0.25 * unbiased.flatten(), "running_var")
    assert relative_error(running_var, 0.75 + 0.25 * biased.flatten()) > 1e-2

    # Evaluation takes a variance as it is given.
    y = N.batch_norm(x, mean.flatten().float(), biased.flatten().float(), weight, bias, training=False, eps=EPS)
    assert_right(y, truth, "y in evaluation")


# --------------------------------------------------------------------------- 5: whitening and normality in article 002


def correlation(t):
    return torch.corrcoef(t.double().movedim(1, 0).flatten(1))


def test_batch_norm_is_not_article_002s_whitening_as_correlations_stay(device):
    """In "Standardize layer inputs": "This process is also called whitening". Whitened channels are uncorrelated."""
    x, weight, bias, _ = draw(device)
    x = x + 2 * x[:, :1]  # every channel has much of the first
    others = ~torch.eye(x.shape[1], dtype=torch.bool, device=device)
    assert correlation(x)[others].min() > 0.5
    y = N.batch_norm(x, None, None, weight.abs(), bias, training=True)
    # A product of two of y's values, each with the roundings of float32.
    assert relative_error(correlation(y), correlation(x)) <= 2 * ROUNDINGS[torch.float32]


def standardized_moment(t, dims, order):
    d = t.double() - t.double().mean(dims, keepdim=True)
    return (d**order).mean(dims) / d.square().mean(dims) ** (order / 2)


# Of an exponential distribution; a normal one has 0 and 3.
MOMENTS = {"skewness": (3, 2.0, 0.0), "kurtosis": (4, 9.0, 3.0)}
NORMS = {
    "batch_norm": (POSITIONS, lambda x, w, b: N.batch_norm(x, None, None, w, b, training=True)),
    "layer_norm": ((1, 2, 3), lambda x, w, b: N.layer_norm(x, x.shape[1:])),
    "rms_norm": ((1, 2, 3), lambda x, w, b: N.rms_norm(x, x.shape[1:])),
}


@pytest.mark.parametrize("name", MOMENTS)
@pytest.mark.parametrize("norm", NORMS)
def test_outputs_are_no_closer_to_article_002s_normal_distribution(norm, name, device):
    """In its questions and answers: batch norm "does move the outputs closer to a normal distribution".

    It is affine in each channel (layer and RMS norm in each row), and skewness and kurtosis are the same of x and of
    a x + b, a > 0.
    """
    _, weight, bias, _ = draw(device)
    order, of_exponential, of_normal = MOMENTS[name]
    dims, normalize = NORMS[norm]
    x = torch.empty(16, 8, 9, 9).exponential_().to(device)
    before = standardized_moment(x, dims, order)
    assert bool(((before - of_normal).abs() > (of_exponential - of_normal) / 4).all())
    after = standardized_moment(normalize(x, weight.abs(), bias), dims, order)
    # A product of as many of y's values.
    assert relative_error(after, before) <= order * ROUNDINGS[torch.float32]
