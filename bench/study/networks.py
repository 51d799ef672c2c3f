"""The networks that are trained, with the norm as an argument, and the norms by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

import normlib

# Returns the layer for a number of features.
Norm = Callable[[int], nn.Module]

# Simonyan and Zisserman (2014), table 1, columns A and D: channels of the convolutions, M where the maximum is taken.
VGG: dict[str, tuple[int | str, ...]] = {
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg16": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
}
# Of the two layers between the convolutions and the classes. The paper has 4096 for its 7 x 7 positions; 32 x 32 pixels
# leave one position.
_VGG_WIDTH = 512


class StudyNoise(nn.Module):
    """Noisy batch norm's noise without the norm: y = s x + m in training, y = x in evaluation.

    Every step draws mu ~ U(-.5, .5) and sigma ~ U(1, 1.25), then for each element m ~ U(mu - .1, mu + .1) and
    s ~ N(sigma, .1). Santurkar et al. (2018), section 2.1 and appendix.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape; y has the same."""
        if not self.training:
            return x
        mu, sigma = torch.rand(2, device=x.device).unbind()
        shift = mu - 0.5 + 0.2 * (torch.rand_like(x) - 0.5)
        scale = 1 + 0.25 * sigma + 0.1 * torch.randn_like(x)
        return scale * x + shift


class MovingAverages(normlib.BatchNorm1d):
    """Normalizes by moving averages in training too, through which no gradient passes; training is known to blow up.

    A batch moves the averages first and is then normalized by them. Ioffe (2017), section 2.
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """input: (N, C); the result has the same shape."""
        if self.training:
            with torch.no_grad():
                super().forward(input)
        statistics = self.running_mean, self.running_var
        return normlib.functional.batch_norm(input, *statistics, self.weight, self.bias, eps=self.eps)


# Norms over the batch have a class for (N, C) and one for (N, C, H, W); the name here lacks the ending.
_OVER_BATCH: dict[str, tuple[str, dict[str, Any]]] = {
    "BN": ("BatchNorm", {}),
    "noisy BN": ("NoisyBatchNorm", {}),
    "batch renorm": ("BatchRenorm", {}),
    "l1": ("LpNorm", {"p": 1}),
    "l2": ("LpNorm", {"p": 2}),
    "linf": ("LpNorm", {"p": float("inf")}),
}
_OTHERS: dict[str, Norm] = {
    "layer norm": normlib.LayerNorm,
    "RMS norm": normlib.RMSNorm,
    "noise": lambda features: StudyNoise(),
    "moving averages": MovingAverages,
}


def norm(name: str, dims: int = 1, **options: Any) -> Norm | None:
    """Returns the layer that a condition names, for (N, C) or with dims=2 for (N, C, H, W); None for `plain`.

    `options` go to the layer's constructor.
    """
    if name == "plain":
        return None
    if name in _OTHERS:
        return _OTHERS[name]
    layer, arguments = _OVER_BATCH[name]
    return partial(getattr(normlib, f"{layer}{dims}d"), **arguments, **options)


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
    """Returns `depth` hidden layers of linear, norm, activation; with `behind` the norm follows the activation."""
    layers: list[nn.Module] = [nn.Flatten()]
    features = prod(image)
    for _ in range(depth):
        layers += _block(_glorot(nn.Linear(features, width)), width, norm, activation, behind)
        layers += [nn.Dropout(dropout)] if dropout else []
        features = width
    return nn.Sequential(*layers, _glorot(nn.Linear(features, classes)))


def deep_linear(features: int, norm: Norm | None, depth: int) -> nn.Sequential:
    """Returns `depth` square matrices in a row, with a norm behind each but the last and no activation."""
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [_glorot(nn.Linear(features, features, bias=False)), *([norm(features)] if norm else [])]
    return nn.Sequential(*layers, _glorot(nn.Linear(features, features, bias=False)))


def vgg(name: str, classes: int, norm: Norm | None, *, behind: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """Returns VGG for (N, 3, 32, 32), with a norm for (N, C, H, W) between every convolution and its ReLU.

    As in the paper, dropout is only between the convolutions and the classes.
    """
    layers: list[nn.Module] = []
    channels = 3
    for width in VGG[name]:
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
    """Returns the weights of linear layers and convolutions, in order, without biases and the norms' parameters."""
    return [parameter for parameter in network.parameters() if parameter.dim() > 1]


def _block(
    layer: nn.Module, width: int, norm: Norm | None, activation: Callable[[], nn.Module], behind: bool
) -> list[nn.Module]:
    around = [activation()] if norm is None else [norm(width), activation()]
    return [layer, *(reversed(around) if behind else around)]


def _glorot(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """Initializes by Glorot and Bengio (2010), equation 16, with a bias of zero."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
