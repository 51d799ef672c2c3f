"""Group normalization of images: each one's channels in groups.

x is (batch, channels, *spatial) as in batch_norm, contiguous or channels-last, and `groups` divides the channels.
Weight and bias have x's dtype: PyTorch's kernel takes no other on a GPU.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from math import gcd, prod
from typing import Any

from bench.cases.case import MODES, Case
from bench.cases.operators import Inputs, Operator, Reference
from bench.cases.operators.batch_norm import LAYOUTS, image_shape
from bench.cases.presets import Preset, grid, preset

# Of every net of Wu and He (2018), and of the diffusion models that took it over.
USUAL_GROUPS = 32
_usual = partial(grid, groups=USUAL_GROUPS)


class GroupNormOperator(Operator):
    """Forward and backward; training and evaluation are the same."""

    name = "group_norm"
    short = "gn"
    axes = ("batch", "channels", "spatial", "groups")
    layouts = LAYOUTS
    eps = 1e-5
    # Of an image's groups together, so that `offset` is a group's mean over its deviation.
    statistics_dim = 0
    rowwise = tuple(MODES)
    sweeps: Mapping[str, Preset] = {
        "smoke": preset(
            "small shapes of every plan, most of them ragged: errors in every dtype and layout, without a GPU",
            grid(LAYOUTS, batch=3, channels=15, spatial="7x7", groups=5),
            grid(LAYOUTS, ("bf16",), batch=4, channels=64, spatial="4x4", groups=8),
            grid(LAYOUTS, ("bf16",), batch=1, channels=2, spatial="65x67", groups=1),
        ),
        "quick": preset(
            "blocks of a diffusion U-Net and of ResNet-50 in both layouts, forward and backward: two minutes on a GPU",
            _usual(LAYOUTS, ("fp16",), batch=2, channels=320, spatial="64x64"),
            _usual(LAYOUTS, ("fp16",), batch=2, channels=1280, spatial="16x16"),
            _usual(("nchw",), ("fp32",), batch=32, channels=256, spatial="14x14"),
            _usual(("nhwc",), ("fp16", "bf16"), batch=32, channels=256, spatial="14x14"),
            modes=("fwd", "bwd"),
        ),
        "full": preset(
            "diffusion models, convolutional nets, and what is off the beaten track, in every dtype and both layouts",
            # A U-Net's stages, for one pair of images and for a batch; the decoder of its latents, for large images.
            *(
                _usual(LAYOUTS, batch=batch, channels=channels, spatial=spatial)
                for batch in (2, 16)
                for channels, spatial in ((320, "64x64"), (640, "32x32"), (1280, "16x16"))
            ),
            _usual(LAYOUTS, batch=1, channels=512, spatial="64x64"),
            _usual(LAYOUTS, batch=1, channels=256, spatial="256x256"),
            _usual(LAYOUTS, batch=1, channels=128, spatial="512x512"),
            _usual(LAYOUTS, batch=32, channels=64, spatial="112x112"),
            _usual(LAYOUTS, batch=32, channels=256, spatial="56x56"),
            _usual(LAYOUTS, batch=32, channels=2048, spatial="7x7"),
            # Nothing divides anything; one group; volumes; sequences; two channels a group.
            grid(LAYOUTS, batch=33, channels=65, spatial="17x17", groups=5),
            grid(LAYOUTS, batch=8, channels=512, spatial="1024", groups=1),
            grid(LAYOUTS, batch=2, channels=32, spatial="64x64x64", groups=8),
            _usual(LAYOUTS, batch=256, channels=64, spatial="8x8"),
        ),
    }

    def shape(self, axes: Mapping[str, int | str]) -> tuple[int, ...]:
        """(batch, channels, *spatial); raises ValueError for a spatial or groups that are none."""
        shape, groups = image_shape(axes), int(axes["groups"])
        if shape[1] % groups:
            raise ValueError(f"groups must divide the channels, and {groups} does not divide {shape[1]}")
        if prod(shape) == groups:
            raise ValueError("a group needs more than one value: raise batch or spatial, or lower groups")
        return shape

    def fitted(self, axes: dict[str, int | str], typed: Collection[str]) -> dict[str, int | str]:
        """A preset's groups as far as they divide other channels."""
        return axes if "groups" in typed else {**axes, "groups": gcd(int(axes["groups"]), int(axes["channels"]))}

    def truth(self, case: Case, inputs: Inputs) -> Reference:
        from normlib import reference

        x, weight, bias, dy = (inputs[name] for name in ("x", "weight", "bias", "dy"))
        return reference.group_norm(x, groups_of(case), weight, bias, case.eps, dy)

    def arguments(self, case: Case) -> dict[str, Any]:
        return {"num_groups": groups_of(case), "eps": case.eps}

    def saved_values(self, case: Case) -> int:
        return 2 * case.shape[0] * groups_of(case)


def groups_of(case: Case) -> int:
    return int(dict(case.options).get("groups", usual_groups(case.shape[1])))


def usual_groups(channels: int) -> int:
    """The usual number of groups as far as it divides the channels."""
    return gcd(channels, USUAL_GROUPS)


OPERATORS = (GroupNormOperator(),)
