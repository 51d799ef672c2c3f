"""Batch renormalization, in training against running statistics, and with them in evaluation.

Shapes, dtypes and layouts are batch norm's. Running statistics lie where a training leaves them, a deviation or so from
the batch's: so r and d are of every size, mostly within their limits and sometimes beyond, whatever the size of x.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.operators import Forward, Functional, Inputs, Reference, _ratio
from bench.cases.operators._draw import Draw
from bench.cases.operators.batch_norm import BatchNorm
from normlib import reference

MOMENTUM = 0.01  # the paper's alpha
RMAX, DMAX = 3.0, 5.0  # the end of the paper's schedules
_TRAINING = ("y", "dx", "dw", "db", "running_mean", "running_std")


class BatchRenorm(BatchNorm):
    """Training forward and backward, and evaluation."""

    name = "batch_renorm"
    short = "brn"
    eps = 1e-3
    saved = ("mean", "rstd", "r", "d")

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Those of batch_norm, with a running_mean near x's own and running_std in place of running_var."""
        found = super().inputs(replace(case, op="batch_norm"), device, seed)
        draw, channels = Draw(replace(case, op=f"{case.op} statistics"), device, seed), case.shape[1]
        x = found["x"].double().nan_to_num(0.0, 0.0, 0.0)
        dims = [d for d in range(x.dim()) if d != self.statistics_dim]
        variance, mean = torch.var_mean(x, dims, correction=0)
        std = (variance + case.eps).sqrt()
        del found["running_var"]
        # A d of three standard deviations passes DMAX once in ten channels, an r of 1/4 to 4 RMAX once in five.
        found["running_std"] = (std * draw.uniform((channels,), -2.0, 2.0).exp2()).float()
        found["running_mean"] = (mean + 3 * found["running_std"] * draw.normal((channels,))).float()
        return found

    def reference(self, case: Case, inputs: Inputs) -> Reference:
        """Training's y, dx, dw, db, running_mean, running_std and what it saves, and evaluation's y_eval."""
        statistics, parameters = (inputs["running_mean"], inputs["running_std"]), (inputs["weight"], inputs["bias"])
        scalars = (MOMENTUM, case.eps, RMAX, DMAX)
        truth = reference.batch_renorm(inputs["x"], *statistics, *parameters, *scalars, inputs["dy"])
        evaluated = reference.batch_renorm_eval(inputs["x"], *statistics, *parameters)
        return {name: truth[name] for name in (*_TRAINING, *self.saved)} | {"y_eval": evaluated["y"]}

    def bind(self, case: Case, function: Functional) -> Forward:
        def forward(x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_std: Tensor) -> Tensor:
            statistics, training = (running_mean, running_std), case.mode != "eval"
            return function(x, *statistics, weight, bias, training, MOMENTUM, case.eps, RMAX, DMAX)

        return forward

    def outputs(self, mode: str) -> tuple[str, ...]:
        """running_std in running_var's place."""
        return tuple("running_std" if name == "running_var" else name for name in super().outputs(mode))

    def dtypes(self, inputs: Inputs) -> dict[str, torch.dtype]:
        """running_std's is its own."""
        return super().dtypes(inputs) | {"running_std": inputs["running_std"].dtype}

    def amplification(self, inputs: Inputs, reference: Reference) -> dict[str, float]:
        """Batch norm's, of a bias + weight d and of x_hat r and d, which dw sums apart: either pair may cancel."""
        channel = [1, -1] + [1] * (inputs["x"].dim() - 2)
        weight, bias = (inputs[name].double().view(channel) for name in ("weight", "bias"))
        d = reference["d"].view(channel)
        shift, y = bias + weight * d, reference["y"]
        apart = torch.hypot((y - shift) / weight, d.expand_as(y))
        found = super().amplification(inputs, {**reference, "y": apart * weight + bias})
        terms = torch.hypot(y - shift, shift.expand_as(y))
        return found | {"y": max(_ratio(terms, y, self.statistics_dim), 1.0)}


OPERATOR = BatchRenorm()
