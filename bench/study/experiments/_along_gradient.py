"""Looks ahead along a training step's gradient, 1/2 to 4 times its length: Santurkar et al. (2018), section 3.1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.study.setting import Setting
from bench.study.training import diverged, train

# Times the learning rate.
MULTIPLES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
# Steps of a run at which one looks ahead.
_LOOKS = 120

# Given the network after a step ahead, the batch, the gradient before and the distance gone: a figure.
Look = Callable[[nn.Module, Tensor, Tensor, list[Tensor], float], float]


@dataclass
class Seen:
    """The lowest and the highest figure of every look, by step."""

    steps: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    diverged: str = ""


def look_along(network: nn.Module, seed: int, setting: Setting, look: Look) -> Seen:
    """Trains the network, and looks ahead every few steps; training itself is not disturbed."""
    every = max(1, setting.scale.steps // _LOOKS)
    seen = Seen()

    def observe(step: int, x: Tensor, y: Tensor, loss: float) -> None:
        if step % every:
            return
        gradient = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        length = norm_of(gradient)
        found = [look(network, x, y, gradient, size * length) for size in _ahead(network, gradient, setting.scale.lr)]
        seen.steps.append(step)
        seen.low.append(min(found))
        seen.high.append(max(found))

    seen.diverged = diverged(train(network, setting.batches(seed), setting.scale.lr, observe))
    return seen


def gradient_at(network: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """The gradient of the batch's loss where the network now is; `.grad` stays as it is."""
    return list(torch.autograd.grad(cross_entropy(network(x), y), list(network.parameters())))


def norm_of(tensors: list[Tensor]) -> float:
    """L2 norm of all elements together."""
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors])))


@torch.no_grad()
def _move(network: nn.Module, start: list[Tensor], gradient: list[Tensor], size: float) -> None:
    for parameter, from_here, slope in zip(network.parameters(), start, gradient, strict=True):
        parameter.copy_(from_here - size * slope)


def _ahead(network: nn.Module, gradient: list[Tensor], lr: float) -> Iterator[float]:
    """Gives each step size in turn with the network moved there, and moves it back in the end."""
    start = [parameter.detach().clone() for parameter in network.parameters()]
    for multiple in MULTIPLES:
        _move(network, start, gradient, multiple * lr)
        yield multiple * lr
    _move(network, start, gradient, 0.0)
