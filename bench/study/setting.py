"""What every run of a study has in common: the images, the device, and how large everything is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.study import networks
from bench.study.choices import Scale
from bench.study.data import CLASSES, Data
from bench.study.layers import norm
from bench.study.training import Batches


@dataclass(frozen=True)
class Setting:
    """Handed to every experiment."""

    data: Data
    device: torch.device
    scale: Scale

    def network(self, layer: str, *, depth: int = 10, **changes: Any) -> nn.Module:
        """The scale's network with this norm (layers.py). `depth` is an MLP's; `changes` are `behind` and `dropout`."""
        if self.scale.network in networks.VGG:
            return networks.vgg(self.scale.network, CLASSES, norm(layer, dims=2), **changes).to(self.device)
        return self.mlp(layer, depth=depth, **changes)

    def mlp(self, layer: str, options: Mapping[str, Any] | None = None, **changes: Any) -> nn.Module:
        """An MLP whatever the scale; `options` are the norm's, `changes` those of networks.mlp."""
        return networks.mlp(self.data.image, CLASSES, norm(layer, **(options or {})), **changes).to(self.device)

    def batches(self, seed: int, *, size: int | None = None, steps: int | None = None) -> Batches:
        """The scale's batches, or others in size and number."""
        return Batches(self.data, size or self.scale.batch, steps or self.scale.steps, seed)
