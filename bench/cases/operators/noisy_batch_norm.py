"""Batch norm with noise behind it in training, of a seed that is one of the inputs.

Shapes, dtypes and layouts are batch norm's. The truth is float64 arithmetic on the same random words: so what is judged
is how words became numbers, and the norm.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.operators import Forward, Functional, Inputs, Reference, _ratio
from bench.cases.operators._draw import Draw
from bench.cases.operators.batch_norm import MOMENTUM, BatchNorm
from normlib import reference
from normlib.philox import noise_of

RANGES = (0.5, 1.25, 0.1, 0.1)  # the paper's: mean_limit, std_limit, mean_spread, std_spread


class NoisyBatchNorm(BatchNorm):
    """Training forward and backward, mu and sigma one for the layer; and evaluation, which is batch norm's."""

    name = "noisy_batch_norm"
    short = "nbn"

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Those of batch_norm, and a seed of one int64."""
        generator = Draw(replace(case, op=f"{case.op} seed"), device, seed).generator
        drawn = torch.randint(2**63 - 1, (), generator=generator, device=device)
        return {**super().inputs(replace(case, op="batch_norm"), device, seed), "seed": drawn}

    def reference(self, case: Case, inputs: Inputs) -> Reference:
        """As batch_norm's, of y and of dy with their noise."""
        x, weight, bias = (inputs[name] for name in ("x", "weight", "bias"))
        found = super().reference(case, inputs)
        noisy = reference.noisy_batch_norm(x, inputs["seed"], weight, bias, case.eps, False, RANGES, inputs["dy"])
        return {name: noisy.get(name, tensor) for name, tensor in found.items()}

    def bind(self, case: Case, function: Functional) -> Forward:
        def forward(
            x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, seed: Tensor
        ) -> Tensor:
            statistics, training = (running_mean, running_var), case.mode != "eval"
            return function(x, *statistics, weight, bias, training, MOMENTUM, case.eps, seed=seed)

        return forward

    def amplification(self, inputs: Inputs, reference: Reference) -> dict[str, float]:
        """Batch norm's, of dy with its noise; y has three terms, s x_hat weight, s bias and m."""
        s, m = noise_of(inputs["x"], inputs["seed"], False, list(RANGES), torch.float64)
        bias = inputs["bias"].double().view([1, -1] + [1] * (s.dim() - 2))
        plain = (reference["y"] - m) / s
        found = super().amplification({**inputs, "dy": s * inputs["dy"]}, {**reference, "y": plain})
        terms = torch.stack([s * (plain - bias), s * bias, m]).norm(dim=0)
        return found | {"y": max(_ratio(terms, reference["y"], self.statistics_dim), 1.0)}


OPERATOR = NoisyBatchNorm()
