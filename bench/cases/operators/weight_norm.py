"""Weight normalization of rows: x is the direction v of (units, fan_in), weight the lengths g of (units,), y their w.

A linear layer's weight is such rows as it is, a convolution's flattened. dy is what arrives at the weight; the operator
runs once a step and not once a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log2, sqrt

import torch
from torch import Tensor

from bench.cases.case import DTYPES, Case
from bench.cases.operators import Forward, Functional, Inputs, Operator, Preset, Reference, _ratio
from bench.cases.operators._draw import TORCH_DTYPES, Draw
from normlib import reference

_LAYOUT = ("rows",)
_PRESETS = {
    "smoke": Preset(
        "two tiny shapes, one ragged: errors in every dtype within seconds, without a GPU",
        (
            {"units": (9,), "fan_in": (99,), "dtype": DTYPES, "layout": _LAYOUT},
            {"units": (16,), "fan_in": (256,), "dtype": ("fp32", "bf16"), "layout": _LAYOUT},
        ),
    ),
    "quick": Preset(
        "layers of a convolutional net and of a language model, forward and backward: two minutes on a GPU",
        (
            {"units": (512, 4096), "fan_in": (1024, 4608, 16384), "dtype": ("bf16",), "layout": _LAYOUT},
            {"units": (4096,), "fan_in": (4608,), "dtype": ("fp32",), "layout": _LAYOUT},
        ),
        modes=("fwd", "bwd"),
    ),
    "full": Preset(
        "convolutions of 3x3 and 1x1, linear layers, few long rows and many short ones, every dtype",
        (
            {"units": (64, 256, 512), "fan_in": (27, 576, 1152, 2304, 4608), "dtype": DTYPES, "layout": _LAYOUT},
            {"units": (1000, 1024, 4096), "fan_in": (512, 1000, 1024, 4096, 16384), "dtype": DTYPES, "layout": _LAYOUT},
            {"units": (1, 64, 2048), "fan_in": (65536,), "dtype": DTYPES, "layout": _LAYOUT},
            {"units": (131072,), "fan_in": (64, 128, 256), "dtype": DTYPES, "layout": _LAYOUT},
        ),
    ),
}


class WeightNorm(Operator):
    """Everything in x's dtype; forward saves a norm a row, as a float and a power of two."""

    name = "weight_norm"
    short = "wn"
    axes = ("units", "fan_in")
    layouts = _LAYOUT
    modes = ("fwd", "bwd", "fwd_bwd")
    eps = 0.0  # there is none
    statistics_dim = 0
    saved = ("norm",)
    presets: Mapping[str, Preset] = _PRESETS

    def shape(self, axes: Mapping[str, int | str]) -> tuple[int, ...]:
        """(units, fan_in)."""
        return int(axes["units"]), int(axes["fan_in"])

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """x of (units, fan_in), weight of (units,), dy like x; all in the case's dtype."""
        draw, dtype = Draw(case, device, seed), TORCH_DTYPES[case.dtype]
        x = draw.activations(case, self.statistics_dim)
        return {"x": x, "dy": draw.normal(case.shape).to(dtype), "weight": draw.weight(case.shape[0]).to(dtype)}

    def reference(self, case: Case, inputs: Inputs) -> Reference:
        """y, dx, dw, norm in float64."""
        return reference.weight_norm(inputs["x"], inputs["weight"], inputs["dy"])

    def bind(self, case: Case, function: Functional) -> Forward:
        def forward(x: Tensor, weight: Tensor) -> Tensor:
            return function(x, weight[:, None])

        return forward

    def outputs(self, mode: str) -> tuple[str, ...]:
        """y forward; dx and dw backward."""
        return {"fwd": ("y",), "bwd": ("dx", "dw"), "fwd_bwd": ("y", "dx", "dw")}[mode]

    def amplification(self, inputs: Inputs, reference: Reference) -> dict[str, float]:
        """dw is a sum over a row; y is one product, and no size of x is small, for each row has its scale."""
        terms = inputs["dy"].double() * (reference["y"] / inputs["weight"].double()[:, None])
        levels = sqrt(1 + log2(terms.shape[1]) / 3)
        return {"dw": max(levels * _ratio(terms, reference["dw"], None), 1.0)}

    def bytes_moved(self, case: Case) -> int:
        """Forward reads x and writes y; backward reads x and dy and writes dx; weight, norm and dw go with a row."""
        units, fan_in = case.shape
        item = TORCH_DTYPES[case.dtype].itemsize
        activation, saved = units * fan_in * item, 4 * units
        forward = 2 * activation + units * item + saved
        backward = 3 * activation + 2 * units * item + saved
        return {"fwd": forward, "bwd": backward, "fwd_bwd": forward + backward}[case.mode]


OPERATOR = WeightNorm()
