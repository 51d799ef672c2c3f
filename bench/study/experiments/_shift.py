"""Internal covariate shift as Santurkar et al. (2018) define it, definition 2.1: by the gradients of a layer's weights.

G is the gradient of W_i where the network is, G' the same once the layers before i have taken their step; the shift is
||G - G'||, and the cosine says how far the gradient has turned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

# Layers that are looked at, evenly spread, for each costs a pass; the first has none before it.
_LAYERS = 6


@dataclass(frozen=True)
class Shift:
    """Means over the layers that were looked at."""

    distance: float
    cosine: float


def shift(network: nn.Module, loss: Callable[[], Tensor], lr: float) -> Shift:
    """The shift that a step of gradient descent on this loss makes; the network and its `.grad` stay as they are."""
    layers = _layers(network)
    every = -(-(len(layers) - 1) // _LAYERS)
    parameters = list(network.parameters())
    gradient = dict(zip(parameters, torch.autograd.grad(loss(), parameters), strict=True))
    start = {parameter: parameter.detach().clone() for parameter in parameters}
    distances, cosines = [], []
    for i, layer in enumerate(layers):
        if i and (len(layers) - 1 - i) % every == 0:
            before = gradient[layer[0]]
            (after,) = torch.autograd.grad(loss(), layer[0])
            distances.append(float(torch.linalg.vector_norm(after - before)))
            cosines.append(float(cosine_similarity(after.flatten(), before.flatten(), 0)))
        with torch.no_grad():
            for parameter in layer:
                parameter.sub_(lr * gradient[parameter])
    with torch.no_grad():
        for parameter, value in start.items():
            parameter.copy_(value)
    return Shift(fmean(distances), fmean(cosines))


def _layers(network: nn.Module) -> list[list[nn.Parameter]]:
    """A layer's matrix first, and whatever parameters come before the next matrix: its bias, its norm's."""
    layers: list[list[nn.Parameter]] = []
    for parameter in network.parameters():
        if parameter.dim() > 1:
            layers.append([])
        layers[-1].append(parameter)
    return layers
