"""Synchronized batch norm in one process: the ranks' shares of a batch one after another, by the operator's own steps.

The collective between the steps has no kernel to plant anything in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.operators import Inputs
from bench.cases.operators.batch_norm import MOMENTUM
from bench.measure.providers import Provider, Runnable
from bench.measure.providers._autograd import runnable
from normlib import sync_batch_norm as operator
from normlib.dispatch import backend_for


class Shares(Provider):
    """Serves batch norm's cases with the option `ranks`: three or more, of which the second has no images."""

    name = "normlib"

    def version(self) -> str:
        """Returns nothing: planted kernels have no version."""
        return ""

    def backend(self, case: Case, inputs: Inputs) -> str:
        """Returns what normlib itself says."""
        return backend_for(inputs["x"])

    def build(self, case: Case, inputs: Inputs) -> Runnable:
        # One image for the first rank, none for the second, and of the rest most for the last.
        ranks = int(dict(case.options)["ranks"])
        even, over = divmod(case.shape[0] - 1, ranks - 2)
        shares = [1, 0, *[even] * (ranks - 3), even + over]

        def forward(x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
            return _Shared.apply(x, weight, bias, running_mean, running_var, case.eps, shares)

        return runnable(case, inputs, forward)


class _Shared(torch.autograd.Function):
    """All ranks' passes; gradients of weight and bias are summed, as DistributedDataParallel sums them."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, eps, shares):
        steps, parts = operator._steps(x), x.split(shares)
        messages = torch.stack([steps.moments(part) for part in parts])
        mean, rstd, count = steps.merge_messages(messages, running_mean, running_var, MOMENTUM, eps)
        ctx.shares = shares
        ctx.save_for_backward(x, weight, mean, rstd, count)
        return torch.cat([steps.normalize(part, mean, rstd, weight, bias) for part in parts])

    @staticmethod
    def backward(ctx, dy):
        x, weight, mean, rstd, count = ctx.saved_tensors
        steps, pairs = operator._steps(x), [*zip(dy.split(ctx.shares), x.split(ctx.shares), strict=True)]
        total = steps.add_sums(torch.stack([steps.sums(*pair, mean, rstd) for pair in pairs]))
        dx = torch.cat([steps.input_gradient(*pair, mean, rstd, weight, total, count) for pair in pairs])
        return dx, total[0], total[1], *[None] * 4


PROVIDER = Shares()
