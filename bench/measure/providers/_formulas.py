"""The textbook's ways to a variance, as float32 tensor code: what they cost in accuracy, and why the kernels use none.

Each differs from the others in the statistics alone; gradients are PyTorch's autograd through the same formula.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.operators import Inputs
from bench.cases.operators.batch_norm import MOMENTUM
from bench.measure.providers import Provider, Runnable, Unsupported
from bench.measure.providers._activations import NORM_OF
from bench.measure.providers._autograd import runnable

# x as (statistics, elements) in float32 -> mean and biased variance, each (statistics, 1).
Statistics = Callable[[Tensor], tuple[Tensor, Tensor]]


class Formula(Provider):
    """Layer norm and batch norm with a given formula for mean and variance. Judged, never timed."""

    timed = False

    def __init__(self, name: str, statistics: Statistics) -> None:
        self.name, self._statistics = name, statistics

    def version(self) -> str:
        """PyTorch's version, which computes the sums."""
        return torch.__version__

    def backend(self, case: Case, inputs: Inputs) -> str:
        """PyTorch's elementary operators."""
        return "torch"

    def build(self, case: Case, inputs: Inputs) -> Runnable:
        if case.op.startswith("rms_norm"):
            raise Unsupported("RMS norm has no variance about a mean")
        if case.op in NORM_OF:
            raise Unsupported("a ReLU leaves the formulas what they are for batch_norm")
        if "residual" in inputs:
            raise Unsupported("adding a residual leaves the formulas what they are for layer_norm")
        if case.op not in ("batch_norm", "layer_norm"):
            raise Unsupported("the formulas are judged for batch_norm and layer_norm")
        if case.mode == "eval":
            raise Unsupported("evaluation computes no statistics")
        dim = 1 if case.op == "batch_norm" else 0

        def forward(x: Tensor, weight: Tensor, bias: Tensor, **buffers: Tensor) -> Tensor:
            rows = x.movedim(dim, 0)
            flat = rows.flatten(1).float()
            mean, var = self._statistics(flat)
            y = ((flat - mean) * torch.rsqrt(var + case.eps)).view(rows.shape).movedim(0, dim)
            if buffers:
                n = flat.shape[1]
                with torch.no_grad():
                    buffers["running_mean"].lerp_(mean.flatten(), MOMENTUM)
                    buffers["running_var"].lerp_(var.flatten() * (n / (n - 1)), MOMENTUM)
            shape = [-1 if d == 1 else 1 for d in range(x.dim())]
            return (y * weight.view(shape) + bias.view(shape)).to(x.dtype)

        return runnable(case, inputs, forward)
