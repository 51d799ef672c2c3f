"""The textbook's ways to a variance, as float32 tensor code: what they cost in accuracy, and why the kernels use none.

They differ only in the statistics; gradients are PyTorch's autograd through the same formula.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.operators import Inputs, operators
from bench.measure.providers import Provider, Runnable, Unsupported
from bench.measure.providers._autograd import runnable

# The operators that the formulas are judged by: fused forms have the same statistics, RMS norm has no variance.
_JUDGED = ("batch_norm", "layer_norm")


class Formula(Provider):
    """Layer norm and batch norm with a given formula for mean and variance. Judged, never timed.

    `statistics` takes x as float32 (statistics, elements) and returns mean and biased variance, each (statistics, 1).
    """

    timed = False

    def __init__(self, name: str, statistics: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.name, self._statistics = name, statistics

    def version(self) -> str:
        """PyTorch's version, which computes the sums."""
        return torch.__version__

    def backend(self, case: Case, inputs: Inputs) -> str:
        """PyTorch's elementary operators."""
        return "torch"

    def build(self, case: Case, inputs: Inputs) -> Runnable:
        if case.op not in _JUDGED:
            raise Unsupported(f"the formulas are judged for {' and '.join(_JUDGED)}")
        if case.mode == "eval":
            raise Unsupported("evaluation computes no statistics")
        operator = operators()[case.op]

        def forward(x: Tensor, weight: Tensor, bias: Tensor, **buffers: Tensor) -> Tensor:
            rows = x.movedim(operator.statistics_dim, 0)
            flat = rows.flatten(1).float()
            mean, var = self._statistics(flat)
            y = ((flat - mean) * torch.rsqrt(var + case.eps)).view(rows.shape).movedim(0, operator.statistics_dim)
            if buffers:
                n = flat.shape[1]
                with torch.no_grad():
                    buffers["running_mean"].lerp_(mean.flatten(), operator.momentum)
                    buffers["running_var"].lerp_(var.flatten() * (n / (n - 1)), operator.momentum)
            shape = [-1 if d == operator.parameter_dim else 1 for d in range(x.dim())]
            return (y * weight.view(shape) + bias.view(shape)).to(x.dtype)

        return runnable(case, inputs, forward)


def one_pass(x: Tensor) -> tuple[Tensor, Tensor]:
    """var = E[x^2] - mean^2: one sweep over x, and the difference of two large numbers wherever the mean is large."""
    mean = x.mean(1, keepdim=True)
    return mean, (x * x).mean(1, keepdim=True) - mean * mean


def two_pass(x: Tensor) -> tuple[Tensor, Tensor]:
    """mean, then var = E[(x - mean)^2]: what is wrong in the float32 mean stays in every x - mean."""
    mean = x.mean(1, keepdim=True)
    return mean, (x - mean).square().mean(1, keepdim=True)


def welford(x: Tensor) -> tuple[Tensor, Tensor]:
    """Welford's updates, merged pairwise by Chan's formula: one sweep, as accurate as two, and also a float32 mean.

    Welford, "Note on a method for calculating corrected sums of squares and products" (1962); Chan, Golub and LeVeque
    (1979), equations 2.1.
    """
    mean, m2, count = x, torch.zeros_like(x), torch.ones_like(x)
    while mean.shape[1] > 1:
        if mean.shape[1] % 2:  # an empty set makes the last pair whole
            mean, m2, count = (torch.nn.functional.pad(t, (0, 1)) for t in (mean, m2, count))
        (mean_a, mean_b), (m2_a, m2_b), (n_a, n_b) = ((t[:, ::2], t[:, 1::2]) for t in (mean, m2, count))
        count = n_a + n_b
        delta = torch.where(n_b > 0, mean_b - mean_a, 0.0)
        mean, m2 = mean_a + delta * (n_b / count), m2_a + m2_b + delta * delta * (n_a * n_b / count)
    return mean, m2 / count


PROVIDERS = tuple(Formula(formula.__name__, formula) for formula in (one_pass, two_pass, welford))
