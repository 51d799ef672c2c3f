"""Group normalization of images: each one's channels in groups.

x is (batch, channels, *spatial) as in batch_norm, contiguous or channels-last, and `groups` divides the channels.
Weight and bias have x's dtype: PyTorch's kernel takes no other on a GPU.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import gcd, prod

import torch
from torch import Tensor

from bench.cases.case import DTYPES, Case
from bench.cases.operators import Forward, Functional, Grid, Inputs, Operator, Preset, Reference
from bench.cases.operators._draw import TORCH_DTYPES, Draw
from bench.cases.operators.batch_norm import BatchNorm, image_shape, laid_out
from normlib import reference

# Of every net of Wu and He (2018), and of the diffusion models that took it over.
USUAL = 32
_LAYOUTS = BatchNorm.layouts


def _grid(batch: int, channels: int, spatial: str, groups: int, dtypes: tuple[str, ...] = DTYPES) -> Grid:
    sizes: Grid = {"batch": (batch,), "channels": (channels,), "spatial": (spatial,), "groups": (groups,)}
    return {**sizes, "dtype": dtypes, "layout": _LAYOUTS}


_PRESETS = {
    "smoke": Preset(
        "a tiny ragged shape in every dtype and layout, and one of powers of two: errors within seconds, without a GPU",
        (_grid(3, 35, "7x7", 5), _grid(4, 64, "4x4", 8, ("bf16",))),
    ),
    "quick": Preset(
        "blocks of a diffusion U-Net and of ResNet-50 in both layouts, forward and backward: two minutes on a GPU",
        (
            _grid(2, 320, "64x64", USUAL, ("fp16",)),
            _grid(2, 1280, "16x16", USUAL, ("fp16",)),
            {**_grid(32, 256, "14x14", USUAL, ("fp32",)), "layout": ("nchw",)},
            {**_grid(32, 256, "14x14", USUAL, ("fp16", "bf16")), "layout": ("nhwc",)},
        ),
        modes=("fwd", "bwd"),
    ),
    "full": Preset(
        "diffusion models, convolutional nets, and what is off the beaten track, in every dtype and both layouts",
        (
            # A U-Net's stages, alone and in a batch; the decoder of its latents, of large images.
            *(_grid(n, c, s, USUAL) for n in (2, 16) for c, s in ((320, "64x64"), (640, "32x32"), (1280, "16x16"))),
            *(_grid(1, c, s, USUAL) for c, s in ((512, "64x64"), (256, "256x256"), (128, "512x512"))),
            *(_grid(32, c, s, USUAL) for c, s in ((64, "112x112"), (256, "56x56"), (2048, "7x7"))),
            # Nothing divides anything; one group; volumes; sequences; two channels a group.
            _grid(33, 65, "17x17", 5),
            _grid(8, 512, "1024", 1),
            _grid(2, 32, "64x64x64", 8),
            _grid(256, 64, "8x8", USUAL),
        ),
    ),
}


class GroupNorm(Operator):
    """Forward and backward; training and evaluation are the same."""

    name = "group_norm"
    short = "gn"
    axes = ("batch", "channels", "spatial", "groups")
    layouts = _LAYOUTS
    modes = ("fwd", "bwd", "fwd_bwd")
    eps = 1e-5
    # Of an image's groups together, so that `offset` is a group's mean over its deviation.
    statistics_dim = 0
    presets: Mapping[str, Preset] = _PRESETS

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

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """x and dy of the case's shape and layout, weight and bias of (channels,); all in the case's dtype."""
        draw, dtype, channels = Draw(case, device, seed), TORCH_DTYPES[case.dtype], case.shape[1]
        return {
            "x": laid_out(draw.activations(case, self.statistics_dim), case.layout),
            "dy": laid_out(draw.normal(case.shape).to(dtype), case.layout),
            "weight": draw.weight(channels).to(dtype),
            "bias": draw.bias(channels).to(dtype),
        }

    def reference(self, case: Case, inputs: Inputs) -> Reference:
        """y, dx, dw, db, mean, rstd in float64."""
        x, weight, bias, dy = (inputs[name] for name in ("x", "weight", "bias", "dy"))
        truth = reference.group_norm(x, groups_of(case), weight, bias, case.eps, dy)
        return {name: truth[name] for name in (*self.outputs("fwd_bwd"), *self.saved)}

    def bind(self, case: Case, function: Functional) -> Forward:
        def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return function(x, groups_of(case), weight, bias, case.eps)

        return forward

    def outputs(self, mode: str) -> tuple[str, ...]:
        """y forward; dx, dw and db backward."""
        gradients = ("dx", "dw", "db")
        return {"fwd": ("y",), "bwd": gradients, "fwd_bwd": ("y", *gradients)}[mode]

    def bytes_moved(self, case: Case) -> int:
        """Forward reads x and writes y; backward reads x and dy and writes dx; parameters and statistics once each."""
        item = TORCH_DTYPES[case.dtype].itemsize
        activation, vector = prod(case.shape) * item, case.shape[1] * item
        saved = 2 * 4 * case.shape[0] * groups_of(case)
        forward = 2 * activation + 2 * vector + saved
        backward = 3 * activation + 3 * vector + saved
        return {"fwd": forward, "bwd": backward, "fwd_bwd": forward + backward}[case.mode]


def groups_of(case: Case) -> int:
    """The case's groups; where it has none, the usual number as far as it divides the channels."""
    return int(dict(case.options).get("groups", usual_groups(case.shape[1])))


def usual_groups(channels: int) -> int:
    """The usual number of groups as far as it divides the channels."""
    return gcd(channels, USUAL)


OPERATOR = GroupNorm()
