"""Weight normalization of rows: x is the direction v of (units, fan_in), weight the lengths g of (units,), y their w.

A linear layer's weight is such rows as it is, a convolution's flattened. dy is what arrives at the weight; the operator
runs once a step and not once a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bench.cases.case import Case
from bench.cases.operators import Forward, Functional, Inputs, Operator, Reference, ratio, rounding_levels
from bench.cases.presets import Preset, grid, preset

if TYPE_CHECKING:
    pass

_LAYOUTS = ("rows",)


class WeightNormOperator(Operator):
    """Everything in x's dtype; forward saves a norm a row, as a float and a power of two."""

    name = "weight_norm"
    short = "wn"
    axes = ("units", "fan_in")
    layouts = _LAYOUTS
    eps = 0.0  # there is none
    statistics_dim = parameter_dim = 0
    parameters = ("weight",)
    saved = ("norm",)
    sweeps: Mapping[str, Preset] = {
        "smoke": preset(
            "small shapes of every plan, most of them ragged: errors in every dtype within seconds, without a GPU",
            grid(_LAYOUTS, units=9, fan_in=99),
            grid(_LAYOUTS, ("fp32", "bf16"), units=16, fan_in=256),
            grid(_LAYOUTS, ("bf16",), units=1, fan_in=16401),
        ),
        "quick": preset(
            "layers of a convolutional net and of a language model, forward and backward: two minutes on a GPU",
            grid(_LAYOUTS, ("bf16",), units=(512, 4096), fan_in=(1024, 4608, 16384)),
            grid(_LAYOUTS, ("fp32",), units=4096, fan_in=4608),
            modes=("fwd", "bwd"),
        ),
        "full": preset(
            "convolutions of 3x3 and 1x1, linear layers, few long rows and many short ones, every dtype",
            grid(_LAYOUTS, units=(64, 256, 512), fan_in=(27, 576, 1152, 2304, 4608)),
            grid(_LAYOUTS, units=(1000, 1024, 4096), fan_in=(512, 1000, 1024, 4096, 16384)),
            grid(_LAYOUTS, units=(1, 64, 2048), fan_in=65536),
            grid(_LAYOUTS, units=131072, fan_in=(64, 128, 256)),
        ),
    }

    def shape(self, axes: Mapping[str, int | str]) -> tuple[int, ...]:
        """(units, fan_in)."""
        return int(axes["units"]), int(axes["fan_in"])

    def truth(self, case: Case, inputs: Inputs) -> Reference:
        from normlib import reference

        return reference.weight_norm(inputs["x"], inputs["weight"], inputs["dy"])

    def bind(self, case: Case, function: Functional) -> Forward:
        return lambda x, weight: function(x, weight[:, None])

    def amplification(self, inputs: Inputs, reference: Reference) -> dict[str, float]:
        """dw is a sum over a row; y is one product, and no size of x is small, for each row has its scale."""
        terms = inputs["dy"].double() * (reference["y"] / inputs["weight"].double()[:, None])
        return {"dw": max(rounding_levels(terms.shape[1]) * ratio(terms, reference["dw"], None), 1.0)}

    def saved_values(self, case: Case) -> int:
        return case.shape[0]


OPERATORS = (WeightNormOperator(),)
