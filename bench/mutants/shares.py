"""Synchronized batch norm in one process: the ranks' shares of a batch one after another, by the operator's own steps.

What is between them, a collective, has no kernel to plant anything in.
"""

from __future__ import annotations

from typing import Any, cast

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
    """Serves batch norm's cases with the option `ranks`: three or more, of which the second has nothing."""

    name = "normlib"

    def version(self) -> str:
        """Of what is planted there is none."""
        return ""

    def backend(self, case: Case, inputs: Inputs) -> str:
        """As normlib itself tells it."""
        return backend_for(inputs["x"])

    def build(self, case: Case, inputs: Inputs) -> Runnable:
        shares = _shares(case.shape[0], int(dict(case.options)["ranks"]))

        def forward(x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
            given = (x, weight, bias, running_mean, running_var, case.eps, shares)
            return cast(Tensor, _Shared.apply(*given))  # type: ignore[no-untyped-call]

        return runnable(case, inputs, forward)


def _shares(batch: int, ranks: int) -> list[int]:
    """Images of each rank: one for the first, none for the second, and of the rest most for the last."""
    even, over = divmod(batch - 1, ranks - 2)
    return [1, 0, *[even] * (ranks - 3), even + over]


class _Shared(torch.autograd.Function):
    """All ranks' passes; gradients of weight and bias are added, as DistributedDataParallel adds them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        shares: list[int],
    ) -> Tensor:
        steps, parts = operator._steps(x), x.split(shares)
        messages = torch.stack([steps.moments(part) for part in parts])
        mean, rstd, count = steps.merge_messages(messages, running_mean, running_var, MOMENTUM, eps)
        ctx.shares = shares
        ctx.save_for_backward(x, weight, mean, rstd, count)
        return torch.cat([steps.normalize(part, mean, rstd, weight, bias) for part in parts])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd, count = ctx.saved_tensors
        steps, pairs = operator._steps(x), [*zip(dy.split(ctx.shares), x.split(ctx.shares), strict=True)]
        total = steps.add_sums(torch.stack([steps.sums(*pair, mean, rstd) for pair in pairs]))
        dx = torch.cat([steps.input_gradient(*pair, mean, rstd, weight, total, count) for pair in pairs])
        return dx, total[0], total[1], *[None] * 4


PROVIDER = Shares()
