"""Instance normalization: each channel of each image by itself, with batch norm's inputs and running statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.cases.case import MODES, Case
from bench.cases.operators import Inputs, Reference
from bench.cases.operators.batch_norm import LAYOUTS, SMOKE, BatchNorm
from bench.cases.presets import Preset, grid, preset


class InstanceNorm(BatchNorm):
    """Forward and backward with running statistics, as training has it, and evaluation."""

    name = "instance_norm"
    short = "in"
    rowwise = tuple(MODES)
    running: Mapping[str, str] = {"running_mean": "mean_of_images", "running_var": "var_unbiased_of_images"}
    sweeps: Mapping[str, Preset] = {
        "smoke": preset(
            "small shapes of every plan, most of them ragged: errors in every dtype and layout, without a GPU",
            *SMOKE.grids,
            grid(LAYOUTS, ("bf16",), batch=1, channels=1, spatial="92x93"),
        ),
        "quick": preset(
            "an image in a style-transfer net, a batch of small ones, forward and backward: two minutes on a GPU",
            grid(LAYOUTS, ("fp16",), batch=1, channels=64, spatial="256x256"),
            grid(LAYOUTS, ("fp16",), batch=1, channels=256, spatial="64x64"),
            grid(("nchw",), ("fp32",), batch=32, channels=512, spatial="16x16"),
            grid(("nhwc",), ("fp16", "bf16"), batch=32, channels=512, spatial="16x16"),
            modes=("fwd", "bwd"),
        ),
        "full": preset(
            "style transfer, segmentation of volumes, and what is off the beaten track, in every dtype and both "
            "layouts",
            *(
                grid(LAYOUTS, batch=batch, channels=channels, spatial=spatial)
                for batch in (1, 16)
                for channels, spatial in ((64, "256x256"), (128, "128x128"), (256, "64x64"))
            ),
            grid(LAYOUTS, batch=2, channels=32, spatial="64x64x64"),
            grid(LAYOUTS, batch=2, channels=320, spatial="4x4x4"),
            # Nothing divides anything; sequences; very many small images.
            grid(LAYOUTS, batch=33, channels=65, spatial="17x17"),
            grid(LAYOUTS, batch=32, channels=512, spatial="1024"),
            grid(LAYOUTS, batch=256, channels=512, spatial="7x7"),
        ),
    }

    def shape(self, axes: Mapping[str, int | str]) -> tuple[int, ...]:
        """(batch, channels, *spatial); raises ValueError where batch_norm does, and for one position."""
        if str(axes["spatial"]) == "1":
            raise ValueError("an instance needs more than one value: raise spatial")
        return super().shape(axes)

    def truth(self, case: Case, inputs: Inputs) -> Reference:
        """The formula's results; mean and rstd have a value for each channel of each image."""
        from normlib import reference

        x, weight, bias, dy = (inputs[name] for name in ("x", "weight", "bias", "dy"))
        evaluated = super().truth(case, inputs)["y_eval"]
        return reference.instance_norm(x, weight, bias, case.eps, dy) | {"y_eval": evaluated}

    def arguments(self, case: Case) -> dict[str, Any]:
        return {"use_input_stats": case.mode != "eval", "momentum": self.momentum, "eps": case.eps}

    def saved_values(self, case: Case) -> int:
        return 2 * case.shape[0] * case.shape[1]


OPERATORS = (InstanceNorm(),)
