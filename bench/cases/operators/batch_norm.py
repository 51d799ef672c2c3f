"""Batch normalization over everything but the channels, in training and with running statistics.

x is (batch, channels, *spatial): `56x56` is 2-D, `4x8x8` 3-D, `7` 1-D, and `1`, a single position, is the (batch,
channels) input of BatchNorm1d. `nhwc` is channels-last at any rank: the channels are adjacent in memory. Weight, bias
and running statistics are float32 whatever x's dtype is, as in mixed-precision training (and cuDNN takes no other).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from bench.cases.case import DTYPES, Case
from bench.cases.operators import Forward, Functional, Inputs, Operator, Preset, Reference
from bench.cases.operators._draw import TORCH_DTYPES, Draw
from bench.cases.operators._models import model_presets
from normlib import reference

MOMENTUM = 0.1
_LAYOUTS = ("nchw", "nhwc")
_SPATIAL = re.compile(r"[1-9]\d*(x[1-9]\d*){0,2}")
_TRAINING = ("y", "dx", "dw", "db", "running_mean", "running_var")

_PRESETS = {
    "smoke": Preset(
        "two tiny shapes, one ragged: errors in every dtype and layout within seconds, without a GPU",
        (
            {"batch": (3,), "channels": (37,), "spatial": ("7x7",), "dtype": DTYPES, "layout": _LAYOUTS},
            {"batch": (4,), "channels": (64,), "spatial": ("4x4",), "dtype": DTYPES, "layout": _LAYOUTS},
        ),
    ),
    "quick": Preset(
        "ResNet-50's first, a middle and last norm in both layouts, forward and backward: two minutes on a GPU",
        tuple(
            {"batch": (32,), "channels": (channels,), "spatial": (spatial,), "dtype": (dtype,), "layout": layouts}
            for channels, spatial, dtype, layouts in (
                (64, "112x112", "fp16", _LAYOUTS),
                (256, "14x14", "fp32", ("nchw",)),
                (256, "14x14", "fp16", ("nhwc",)),
                (256, "14x14", "bf16", ("nhwc",)),
                (2048, "7x7", "fp16", _LAYOUTS),
            )
        ),
        modes=("fwd", "bwd"),
    ),
    "full": Preset(
        "the stages of a convolutional net, and what is off the beaten track, in every dtype and both layouts",
        (
            *(
                {"batch": (32, 256), "channels": channels, "spatial": spatial, "dtype": DTYPES, "layout": _LAYOUTS}
                for channels, spatial in (
                    ((64, 128), ("56x56", "112x112")),
                    ((256, 512), ("14x14", "28x28")),
                    ((1024, 2048), ("7x7",)),
                )
            ),
            # Nothing divides anything; one image; volumes; sequences.
            {"batch": (33,), "channels": (65,), "spatial": ("17x17",), "dtype": DTYPES, "layout": _LAYOUTS},
            {"batch": (1,), "channels": (64,), "spatial": ("224x224",), "dtype": DTYPES, "layout": _LAYOUTS},
            {"batch": (8,), "channels": (64,), "spatial": ("16x32x32",), "dtype": DTYPES, "layout": _LAYOUTS},
            {"batch": (32,), "channels": (512,), "spatial": ("1024",), "dtype": DTYPES, "layout": _LAYOUTS},
            # (batch, channels) has one layout only.
            {"batch": (8192,), "channels": (1024,), "spatial": ("1",), "dtype": DTYPES, "layout": ("nchw",)},
        ),
    ),
}


class BatchNorm(Operator):
    """Training forward and backward with running statistics, and evaluation."""

    name = "batch_norm"
    short = "bn"
    axes: tuple[str, ...] = ("batch", "channels", "spatial")
    layouts = _LAYOUTS
    modes: tuple[str, ...] = ("fwd", "bwd", "fwd_bwd", "eval")
    eps = 1e-5
    statistics_dim = 1

    def __init__(self) -> None:
        self.presets: Mapping[str, Preset] = {**_PRESETS, **model_presets(self.name, self.layouts)}

    def shape(self, axes: Mapping[str, int | str]) -> tuple[int, ...]:
        """(batch, channels, *spatial); raises ValueError for a spatial that is none, or one value a channel."""
        shape = image_shape(axes)
        if shape[0] * prod(shape[2:]) == 1:
            raise ValueError("training needs more than one value a channel: raise batch or spatial")
        return shape

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """x and dy of the case's shape, dtype and layout; the rest float32 of (channels,), running_var positive."""
        draw, dtype, channels = Draw(case, device, seed), TORCH_DTYPES[case.dtype], case.shape[1]
        return {
            "x": laid_out(draw.activations(case, self.statistics_dim), case.layout),
            "dy": laid_out(draw.normal(case.shape).to(dtype), case.layout),
            "weight": draw.weight(channels),
            "bias": draw.bias(channels),
            "running_mean": draw.normal((channels,)),
            "running_var": draw.uniform((channels,), 0.5, 2.0),
        }

    def reference(self, case: Case, inputs: Inputs) -> Reference:
        """Training's y, dx, dw, db, running_mean, running_var, mean, rstd, and evaluation's y_eval, in float64."""
        x, weight, bias, dy = (inputs[name] for name in ("x", "weight", "bias", "dy"))
        mean, var = inputs["running_mean"], inputs["running_var"]
        truth = reference.batch_norm(x, weight, bias, case.eps, dy)
        truth["running_mean"] = (1 - MOMENTUM) * mean.double() + MOMENTUM * truth["mean"]
        truth["running_var"] = (1 - MOMENTUM) * var.double() + MOMENTUM * truth["var_unbiased"]
        evaluated = reference.batch_norm_eval(x, mean, var, weight, bias, case.eps)
        return {name: truth[name] for name in (*_TRAINING, *self.saved)} | {"y_eval": evaluated["y"]}

    def bind(self, case: Case, function: Functional) -> Forward:
        def forward(x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
            return function(x, running_mean, running_var, weight, bias, case.mode != "eval", MOMENTUM, case.eps)

        return forward

    def outputs(self, mode: str) -> tuple[str, ...]:
        """Evaluation's y has a name of its own, for the reference holds both."""
        return {
            "fwd": ("y", "running_mean", "running_var"),
            "bwd": ("dx", "dw", "db"),
            "fwd_bwd": _TRAINING,
            "eval": ("y_eval",),
        }[mode]

    def bytes_moved(self, case: Case) -> int:
        """Forward and evaluation read x and write y; backward reads x and dy and writes dx.

        That is the floor of a kernel that keeps its second sweep over x (and dy) on chip; one that reads them again
        moves 3 and 5 activations in place of 2 and 3.
        """
        activation = prod(case.shape) * TORCH_DTYPES[case.dtype].itemsize
        vector = 4 * case.shape[1]
        # weight, bias; both running statistics in and out; mean and rstd saved.
        forward = 2 * activation + 8 * vector
        # weight, mean, rstd; dw, db.
        backward = 3 * activation + 5 * vector
        # weight, bias, both running statistics.
        evaluation = 2 * activation + 4 * vector
        return {"fwd": forward, "bwd": backward, "fwd_bwd": forward + backward, "eval": evaluation}[case.mode]


def image_shape(axes: Mapping[str, int | str]) -> tuple[int, ...]:
    """(batch, channels, *spatial); raises ValueError for a spatial that is none."""
    spatial = str(axes["spatial"])
    if not _SPATIAL.fullmatch(spatial):
        raise ValueError(f"spatial must look like 7, 56x56 or 4x8x8 (1 for a (batch, channels) input), not {spatial!r}")
    sizes = () if spatial == "1" else tuple(map(int, spatial.split("x")))
    return int(axes["batch"]), int(axes["channels"]), *sizes


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values with the channels innermost in memory for nhwc; (batch, channels) is both at once."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "nhwc" else x.contiguous()


OPERATOR = BatchNorm()
