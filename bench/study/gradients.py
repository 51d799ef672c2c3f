"""Measures gradients during training: ahead along a step, and before and after the layers below have moved.

Both move the network and restore it, so that training is not affected.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from bench.study.training import StudySetting, diverged

# Santurkar et al. (2018), section 3.1: steps of 1/2 to 4 times the learning rate.
MULTIPLES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
# Steps of a run at which one looks ahead: each costs eight more passes.
_LOOKS = 120
# Layers whose shift is measured, evenly spread, because each costs a pass; the first layer has none before it.
_LAYERS = 6


def look_along(
    network: nn.Module, seed: int, setting: StudySetting, look: Callable[[Tensor, Tensor, list[Tensor], float], float]
) -> tuple[dict[str, list[float]], str]:
    """Trains the network, and calls `look` some way ahead along the gradient every few steps.

    `look(x, y, gradient, distance)` gets the batch, the gradient before the step and the distance gone. Returns the
    lowest and highest results at each step as a band, and where the loss diverged.
    """
    lr = setting.scale.lr

    def ahead(x: Tensor, y: Tensor) -> tuple[float, float]:
        gradient = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        start, length, found = [p.detach().clone() for p in network.parameters()], norm_of(gradient), []
        for multiple in MULTIPLES:
            _move(network, start, gradient, multiple * lr)
            found.append(look(x, y, gradient, multiple * lr * length))
        _move(network, start, gradient, 0.0)
        return min(found), max(found)

    losses, seen = setting.watch(network, seed, ahead, _LOOKS)
    low, high = map(list, zip(*seen.values(), strict=True))
    return {"x": list(seen), "low": low, "high": high}, diverged(losses)


@torch.no_grad()
def _move(network: nn.Module, start: list[Tensor], gradient: list[Tensor], size: float) -> None:
    for parameter, begin, slope in zip(network.parameters(), start, gradient, strict=True):
        parameter.copy_(begin - size * slope)


def norm_of(tensors: list[Tensor]) -> float:
    """Returns the L2 norm of all elements together."""
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors])))


def change_of_gradient(network: nn.Module, x: Tensor, y: Tensor, before: list[Tensor]) -> float:
    """Returns the L2 distance from `before` to the gradient where the network now is; `.grad` stays as it is."""
    now = torch.autograd.grad(cross_entropy(network(x), y), list(network.parameters()))
    return norm_of([a - b for a, b in zip(now, before, strict=True)])


def shift(network: nn.Module, loss: Callable[[], Tensor], lr: float) -> tuple[float, float]:
    """Returns the internal covariate shift of a step of gradient descent, as (distance, cosine), means over layers.

    Santurkar et al. (2018), definition 2.1: G is the gradient of W_i where the network is, G' the same after the layers
    before i have taken their step. The distance is ||G - G'||, the cosine that between G and G'.
    """
    # A layer's matrix first, then the parameters before the next matrix: its bias, its norm's.
    layers: list[list[nn.Parameter]] = []
    for parameter in network.parameters():
        if parameter.dim() > 1:
            layers.append([])
        layers[-1].append(parameter)
    every = -(-(len(layers) - 1) // _LAYERS)
    parameters = list(network.parameters())
    gradient = dict(zip(parameters, torch.autograd.grad(loss(), parameters), strict=True))
    start = [parameter.detach().clone() for parameter in parameters]
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
        for parameter, value in zip(parameters, start, strict=True):
            parameter.copy_(value)
    return fmean(distances), fmean(cosines)
