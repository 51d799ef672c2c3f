"""Operators in every layout of test_layouts.py: what contiguous copies of the same tensors give."""

from math import inf

import pytest
import torch
from calls import Ran
from test_layouts import LAYOUTS, SHAPE

from normlib import functional as N

CHANNELS = SHAPE[1]
# Of x (N, C, H, W), weight, bias and what runs, of C each.
OPERATORS = {
    "batch_norm": lambda x, w, b, mean, spread: N.batch_norm(x, mean, spread, w, b, True),
    "batch_norm, evaluation": lambda x, w, b, mean, spread: N.batch_norm(x, mean, spread, w, b),
    "group_norm": lambda x, w, b, mean, spread: N.group_norm(x, 3, w, b),
    "group_norm, a group": lambda x, w, b, mean, spread: N.group_norm(x, 1, w, b),
    "instance_norm": lambda x, w, b, mean, spread: N.instance_norm(x, mean, spread, w, b),
    "batch_renorm": lambda x, w, b, mean, spread: N.batch_renorm(x, mean, spread, w, b, True),
    "batch_renorm, evaluation": lambda x, w, b, mean, spread: N.batch_renorm(x, mean, spread, w, b),
    "noisy_batch_norm": lambda x, w, b, mean, spread: N.noisy_batch_norm(x, mean, spread, w, b, True, seed=7),
    "lp_norm, p = 1": lambda x, w, b, mean, spread: N.lp_norm(x, mean, spread, w, b, True, p=1),
    "lp_norm, p = inf": lambda x, w, b, mean, spread: N.lp_norm(x, mean, spread, w, b, True, p=inf),
    "lp_norm, evaluation": lambda x, w, b, mean, spread: N.lp_norm(x, mean, spread, w, b, p=inf),
    "sequence_batch_norm": lambda x, w, b, mean, spread: N.sequence_batch_norm(
        x.flatten(2).permute(2, 0, 1), mean, spread, w, b, True, lengths=(20, 7, 13)
    ),
    "partial_rms_norm": lambda x, w, b, mean, spread: N.partial_rms_norm(
        x.movedim(1, -1), (CHANNELS,), w, 1e-5, b, 0.5
    ),
    "weight_norm": lambda x, w, b, mean, spread: N.weight_norm(x, w.view(1, -1, 1, 1), 1) + b.view(-1, 1, 1) * 0,
}
# Of x and of dy; a few, for the time they take.
PAIRS = [
    ("channels-last", "transposed"),
    ("sliced", "expanded"),
    ("transposed", "zero-stride"),
    ("broadcast", "channels-last"),
]


def draw(device):
    """x and dy; weight and bias; what runs, positive."""
    tensors = [torch.randn(SHAPE, dtype=torch.float64, device=device) for _ in range(2)]
    vectors = [torch.randn(CHANNELS, dtype=torch.float64, device=device) for _ in range(2)]
    return *tensors, *vectors, *(torch.rand(CHANNELS, dtype=torch.float64, device=device) + 0.5 for _ in range(2))


def results(name, x, dy, weight, bias, *running):
    """y, the gradients and what runs; dy is taken along as x is."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y = OPERATORS[name](*leaves, *running)
    if y.shape != x.shape:
        dy = dy.movedim(1, -1) if y.dim() == x.dim() else dy.flatten(2).permute(2, 0, 1)
    return [y, *torch.autograd.grad(y, leaves, dy), *running]


@pytest.mark.parametrize(("of_x", "of_dy"), PAIRS)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_layout_changes_no_result(name, of_x, of_dy, device):
    x, dy, *vectors = draw(device)
    x, dy = LAYOUTS[of_x](x), LAYOUTS[of_dy](dy)
    with Ran() as ran:
        found = results(name, x, dy, *(v.clone() for v in vectors))
    assert any(name.endswith("_backward") for name in ran.ours)
    # Of constants, rstd magnifies a rounding of float64 by up to 316 = 1 / sqrt(eps).
    torch.testing.assert_close(found, results(name, x.contiguous(), dy.contiguous(), *vectors), rtol=1e-11, atol=1e-11)


# Not both at once: what runs at strides is left to PyTorch, and its batch norm has a wrong dx for a weight at strides.
@pytest.mark.parametrize("strided", [slice(0, 2), slice(2, 4)], ids=["parameters", "what runs"])
@pytest.mark.parametrize("name", OPERATORS)
def test_vectors_of_any_strides_are_read_and_moved(name, strided, device):
    x, dy, *vectors = draw(device)
    expected = results(name, x, dy, *(v.clone() for v in vectors))
    apart = torch.stack([*vectors, torch.zeros_like(vectors[0])], -1)  # each at every fifth element
    vectors[strided] = apart.unbind(-1)[strided]
    torch.testing.assert_close(results(name, x, dy, *vectors), expected, rtol=1e-12, atol=1e-12)
    assert not apart[:, 4].any()  # which is nobody's
