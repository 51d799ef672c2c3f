"""The networks that are trained, each defined once, with the norm as an argument."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import nn

from bench.study.layers import Norm

# Simonyan and Zisserman (2014), table 1, columns A and D: channels of the convolutions, M where the maximum is taken.
_VGG: dict[str, tuple[int | str, ...]] = {
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg16": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
}
# Of the two layers between the convolutions and the classes: for 32 x 32 pixels one position is left, not the 7 x 7 for
# which the paper has 4096.
_VGG_WIDTH = 512
VGG, VGG_IMAGE = tuple(_VGG), (3, 32, 32)


def mlp(
    image: tuple[int, ...],
    classes: int,
    norm: Norm | None,
    *,
    depth: int = 10,
    width: int = 64,
    activation: Callable[[], nn.Module] = nn.ReLU,
    behind: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """`depth` hidden layers of linear, norm, activation (or `behind` the activation the norm)."""
    layers: list[nn.Module] = [nn.Flatten()]
    features = prod(image)
    for _ in range(depth):
        layers += _block(_glorot(nn.Linear(features, width)), width, norm, activation, behind)
        layers += [nn.Dropout(dropout)] if dropout else []
        features = width
    return nn.Sequential(*layers, _glorot(nn.Linear(features, classes)))


def deep_linear(features: int, norm: Norm | None, depth: int) -> nn.Sequential:
    """`depth` square matrices in a row, with a norm behind each but the last: a line of nothing but products."""
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [_glorot(nn.Linear(features, features, bias=False)), *([norm(features)] if norm else [])]
    return nn.Sequential(*layers, _glorot(nn.Linear(features, features, bias=False)))


def vgg(name: str, classes: int, norm: Norm | None, *, behind: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """VGG for (N, 3, 32, 32), a norm between every convolution and its ReLU; `norm` is one for (N, C, H, W).

    As in the paper there is dropout between the convolutions and the classes alone.
    """
    layers: list[nn.Module] = []
    channels = 3
    for width in _VGG[name]:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += _block(_glorot(nn.Conv2d(channels, width, 3, padding=1)), width, norm, nn.ReLU, behind)
        channels = width
    for _ in range(2):
        # As convolutions of one position, so that the same norms fit behind them.
        layers += _block(_glorot(nn.Conv2d(channels, _VGG_WIDTH, 1)), _VGG_WIDTH, norm, nn.ReLU, behind)
        layers += [nn.Dropout(dropout)] if dropout else []
        channels = _VGG_WIDTH
    return nn.Sequential(*layers, nn.Flatten(), _glorot(nn.Linear(channels, classes)))


def matrices(network: nn.Module) -> list[nn.Parameter]:
    """The weights of linear layers and convolutions, in order; no biases, and nothing of a norm."""
    return [parameter for parameter in network.parameters() if parameter.dim() > 1]


@torch.no_grad()
def scale(network: nn.Module, factor: float) -> None:
    """Multiplies the weights of linear layers and convolutions."""
    for weight in matrices(network):
        weight.mul_(factor)


def _block(
    layer: nn.Module, width: int, norm: Norm | None, activation: Callable[[], nn.Module], behind: bool
) -> list[nn.Module]:
    around = [activation()] if norm is None else [norm(width), activation()]
    return [layer, *(reversed(around) if behind else around)]


def _glorot(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """Glorot and Bengio (2010), equation 16, and no bias to begin with."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
