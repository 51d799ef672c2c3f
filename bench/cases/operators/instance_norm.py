"""Instance normalization: each channel of each image by itself, with batch norm's inputs and running statistics."""

from __future__ import annotations

from collections.abc import Mapping

from bench.cases.case import DTYPES, Case
from bench.cases.operators import Grid, Inputs, Preset, Reference
from bench.cases.operators.batch_norm import MOMENTUM, BatchNorm
from normlib import reference


def _grid(batch: int, channels: int, spatial: str, dtypes: tuple[str, ...] = DTYPES) -> Grid:
    sizes: Grid = {"batch": (batch,), "channels": (channels,), "spatial": (spatial,)}
    return {**sizes, "dtype": dtypes, "layout": BatchNorm.layouts}


_PRESETS = {
    "smoke": Preset(
        "a tiny ragged shape in every dtype and layout, and one of powers of two: errors within seconds, without a GPU",
        (_grid(3, 37, "7x7"), _grid(4, 64, "4x4", ("bf16",))),
    ),
    "quick": Preset(
        "an image in a style-transfer net, a batch of small ones, forward and backward: two minutes on a GPU",
        (
            _grid(1, 64, "256x256", ("fp16",)),
            _grid(1, 256, "64x64", ("fp16",)),
            {**_grid(32, 512, "16x16", ("fp32",)), "layout": ("nchw",)},
            {**_grid(32, 512, "16x16", ("fp16", "bf16")), "layout": ("nhwc",)},
        ),
        modes=("fwd", "bwd"),
    ),
    "full": Preset(
        "style transfer, segmentation of volumes, and what is off the beaten track, in every dtype and both layouts",
        (
            *(
                _grid(batch, channels, spatial)
                for batch in (1, 16)
                for channels, spatial in ((64, "256x256"), (128, "128x128"), (256, "64x64"))
            ),
            _grid(2, 32, "64x64x64"),
            _grid(2, 320, "4x4x4"),
            # Nothing divides anything; sequences; very many small images.
            _grid(33, 65, "17x17"),
            _grid(32, 512, "1024"),
            _grid(256, 512, "7x7"),
        ),
    ),
}


class InstanceNorm(BatchNorm):
    """Forward and backward with running statistics, as training has it, and evaluation."""

    name = "instance_norm"
    short = "in"

    def __init__(self) -> None:
        self.presets: Mapping[str, Preset] = _PRESETS

    def shape(self, axes: Mapping[str, int | str]) -> tuple[int, ...]:
        """(batch, channels, *spatial); raises ValueError as batch_norm does, and for one position."""
        if str(axes["spatial"]) == "1":
            raise ValueError("an instance needs more than one value: raise spatial")
        return super().shape(axes)

    def reference(self, case: Case, inputs: Inputs) -> Reference:
        """As batch_norm's; mean and rstd have a value for each channel of each image."""
        x, weight, bias, dy = (inputs[name] for name in ("x", "weight", "bias", "dy"))
        mean, var = inputs["running_mean"], inputs["running_var"]
        truth = reference.instance_norm(x, weight, bias, case.eps, dy)
        truth["running_mean"] = (1 - MOMENTUM) * mean.double() + MOMENTUM * truth["mean_of_images"]
        truth["running_var"] = (1 - MOMENTUM) * var.double() + MOMENTUM * truth["var_unbiased_of_images"]
        evaluated = reference.batch_norm_eval(x, mean, var, weight, bias, case.eps)
        return {name: truth[name] for name in (*self.outputs("fwd_bwd"), *self.saved)} | {"y_eval": evaluated["y"]}

    def bytes_moved(self, case: Case) -> int:
        """As batch_norm's, but for the mean and the rstd, of each image."""
        more = 2 * 4 * case.shape[1] * (case.shape[0] - 1)
        passes = {"fwd": 1, "bwd": 1, "fwd_bwd": 2, "eval": 0}[case.mode]
        return super().bytes_moved(case) + passes * more


OPERATOR = InstanceNorm()
