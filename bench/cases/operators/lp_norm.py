"""Centring and division by the average l_p norm (Santurkar et al. 2018), of batch norm's inputs, in batch norm's modes.

`p`, 1, 2 or inf, is an axis beside those of batch norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import torch
from torch import Tensor

from bench.cases.case import DTYPES, Case
from bench.cases.operators import Forward, Functional, Grid, Inputs, Preset, Reference
from bench.cases.operators.batch_norm import MOMENTUM, BatchNorm
from normlib import reference

_ORDERS = {"1": 1.0, "2": 2.0, "inf": inf}
_TRAINING = ("y", "dx", "dw", "db", "running_mean", "running_norm")


def _grid(batch: tuple[int, ...], channels: tuple[int, ...], spatial: tuple[str, ...], *dtypes: str) -> Grid:
    kinds = {"dtype": dtypes or DTYPES, "layout": BatchNorm.layouts if spatial != ("1",) else ("nchw",)}
    return {"batch": batch, "channels": channels, "spatial": spatial, "p": tuple(_ORDERS), **kinds}


class LpNorm(BatchNorm):
    """Training forward and backward with running statistics, and evaluation."""

    name = "lp_norm"
    short = "lp"
    axes = (*BatchNorm.axes, "p")
    choices: Mapping[str, tuple[int | str, ...]] = {"p": tuple(_ORDERS)}

    def __init__(self) -> None:
        self.presets: Mapping[str, Preset] = {
            "smoke": Preset(
                "a tiny ragged shape in every p, dtype and layout, and one of powers of two: errors, without a GPU",
                (_grid((3,), (37,), ("7x7",)), {**_grid((4,), (64,), ("4x4",), "bf16"), "p": ("inf",)}),
            ),
            "quick": Preset(
                "a middle norm of ResNet-50 in every p, and the last, forward and backward: two minutes on a GPU",
                (
                    _grid((32,), (256,), ("14x14",), "fp16"),
                    {**_grid((32,), (2048,), ("7x7",), "fp32"), "layout": ("nhwc",), "p": ("1",)},
                ),
                modes=("fwd", "bwd"),
            ),
            "full": Preset(
                "the stages of a convolutional net, and what is off the beaten track, in every p, dtype and layout",
                (
                    _grid((32,), (64,), ("56x56", "112x112")),
                    _grid((32,), (256,), ("14x14", "28x28")),
                    _grid((32,), (2048,), ("7x7",)),
                    # Nothing divides anything; (batch, channels).
                    _grid((33,), (65,), ("17x17",)),
                    _grid((8192,), (1024,), ("1",)),
                ),
            ),
        }

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Those of batch norm, a running_norm in running_var's place."""
        found = super().inputs(case, device, seed)
        return {"running_norm" if name == "running_var" else name: tensor for name, tensor in found.items()}

    def reference(self, case: Case, inputs: Inputs) -> Reference:
        """Training's y, dx, dw, db, running_mean, running_norm, mean, rstd, and evaluation's y_eval, in float64."""
        x, weight, bias, dy = (inputs[name] for name in ("x", "weight", "bias", "dy"))
        p, running = _order(case), (inputs["running_mean"], inputs["running_norm"])
        truth = reference.lp_norm(x, weight, bias, p, case.eps, dy)
        for name, before in zip(("mean", "norm"), running, strict=True):
            truth[f"running_{name}"] = (1 - MOMENTUM) * before.double() + MOMENTUM * truth[name]
        evaluated = reference.lp_norm_eval(x, *running, weight, bias, p, case.eps)
        return {name: truth[name] for name in (*_TRAINING, *self.saved)} | {"y_eval": evaluated["y"]}

    def bind(self, case: Case, function: Functional) -> Forward:
        def forward(x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_norm: Tensor) -> Tensor:
            scalars = (case.mode != "eval", MOMENTUM, case.eps, _order(case))
            return function(x, running_mean, running_norm, weight, bias, *scalars)

        return forward

    def outputs(self, mode: str) -> tuple[str, ...]:
        """Batch norm's, and the running norm."""
        return tuple("running_norm" if name == "running_var" else name for name in super().outputs(mode))

    def dtypes(self, inputs: Inputs) -> dict[str, torch.dtype]:
        """Batch norm's; the running norm's is its own."""
        return super().dtypes(inputs) | {"running_norm": inputs["running_norm"].dtype}


def _order(case: Case) -> float:
    return _ORDERS[str(dict(case.axes).get("p", "2"))]


OPERATOR = LpNorm()
