"""Centring and division by the average l_p norm (Santurkar et al. 2018), of batch norm's inputs, in batch norm's modes.

`p`, 1, 2 or inf, is an axis beside those of batch norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import inf
from typing import Any

from bench.cases.case import Case
from bench.cases.operators import Inputs, Reference
from bench.cases.operators.batch_norm import LAYOUTS, BatchNorm
from bench.cases.presets import Preset, grid, preset

_ORDERS = {"1": 1.0, "2": 2.0, "inf": inf}
_every_p = partial(grid, p=tuple(_ORDERS))


class LpNorm(BatchNorm):
    """Training forward and backward with running statistics, and evaluation."""

    name = "lp_norm"
    short = "lp"
    axes = (*BatchNorm.axes, "p")
    choices: Mapping[str, tuple[int | str, ...]] = {"p": tuple(_ORDERS)}
    running: Mapping[str, str] = {"running_mean": "mean", "running_norm": "norm"}
    sweeps: Mapping[str, Preset] = {
        "smoke": preset(
            "a tiny ragged shape in every p, dtype and layout, and one of powers of two: errors, without a GPU",
            _every_p(LAYOUTS, batch=3, channels=13, spatial="7x7"),
            grid(LAYOUTS, ("bf16",), batch=4, channels=64, spatial="4x4", p="inf"),
        ),
        "quick": preset(
            "a middle norm of ResNet-50 in every p, and the last, forward and backward: two minutes on a GPU",
            _every_p(LAYOUTS, ("fp16",), batch=32, channels=256, spatial="14x14"),
            grid(("nhwc",), ("fp32",), batch=32, channels=2048, spatial="7x7", p="1"),
            modes=("fwd", "bwd"),
        ),
        "full": preset(
            "the stages of a convolutional net, and what is off the beaten track, in every p, dtype and layout",
            _every_p(LAYOUTS, batch=32, channels=64, spatial=("56x56", "112x112")),
            _every_p(LAYOUTS, batch=32, channels=256, spatial=("14x14", "28x28")),
            _every_p(LAYOUTS, batch=32, channels=2048, spatial="7x7"),
            # Nothing divides anything; (batch, channels).
            _every_p(LAYOUTS, batch=33, channels=65, spatial="17x17"),
            _every_p(("nchw",), batch=8192, channels=1024, spatial="1"),
        ),
    }

    def truth(self, case: Case, inputs: Inputs) -> Reference:
        from normlib import reference

        x, mean, norm, weight, bias = (inputs[n] for n in ("x", "running_mean", "running_norm", "weight", "bias"))
        evaluated = reference.lp_norm_eval(x, mean, norm, weight, bias, _order(case), case.eps)
        return reference.lp_norm(x, weight, bias, _order(case), case.eps, inputs["dy"]) | {"y_eval": evaluated["y"]}

    def arguments(self, case: Case) -> dict[str, Any]:
        return {**super().arguments(case), "p": _order(case)}


def _order(case: Case) -> float:
    return _ORDERS[str(dict(case.axes).get("p", "2"))]


OPERATORS = (LpNorm(),)
