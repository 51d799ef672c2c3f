"""The one training loop: plain SGD on cross-entropy, the learning rate constant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.study.data import Data
from bench.study.records import Points

# Called at a step with the batch and the loss, when the gradients are there and the step is not yet taken.
Observe = Callable[[int, Tensor, Tensor, float], None]

# A loss "at the end" is the mean of this share of the steps: one batch alone says little.
_END = 0.1
# Of a stored curve; more would not be seen on a page.
_POINTS = 150
# Accuracies a run.
_LOOKS = 60
# Images a forward pass in evaluation.
_CHUNK = 2048


@dataclass(frozen=True)
class Outcome:
    """What a run gave; `diverged` says which loss was no longer finite, if one was."""

    values: Mapping[str, float]
    series: Mapping[str, Points] = field(default_factory=dict)
    diverged: str = ""


@dataclass(frozen=True)
class Batches:
    """So many batches of one size, each image once before any comes again; the seed decides the order."""

    data: Data
    size: int
    steps: int
    seed: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        shuffle = torch.Generator().manual_seed(self.seed)
        images = self.data.x.shape[0]
        whole = max(1, images // self.size)
        for step in range(self.steps):
            if step % whole == 0:
                order = torch.randperm(images, generator=shuffle).to(self.data.x.device)
            chosen = order[(step % whole) * self.size :][: self.size]
            yield self.data.x[chosen], self.data.y[chosen]


def train(network: nn.Module, batches: Batches, lr: float, observe: Observe | None = None) -> list[float]:
    """The loss of every step; from the first that is not finite on, training has ended and they are inf."""
    network.train()
    sgd = torch.optim.SGD(network.parameters(), lr)
    losses: list[float] = []
    for step, (x, y) in enumerate(batches):
        loss = cross_entropy(network(x), y)
        losses.append(loss.item())
        if not isfinite(losses[-1]):
            return losses[:-1] + [inf] * (len(batches) - step)
        sgd.zero_grad()
        loss.backward()
        if observe:
            observe(step, x, y, losses[-1])
        sgd.step()
    return losses


def end(losses: Sequence[float]) -> float:
    """The loss at the end of a run; inf where it diverged."""
    return fmean(losses[-max(1, round(_END * len(losses))) :])


def diverged(losses: Sequence[float]) -> str:
    """Where a loss stopped being finite, in words; "" if nowhere."""
    step = next((step for step, loss in enumerate(losses) if not isfinite(loss)), None)
    return "" if step is None else f"the loss is not finite from step {step} on"


@torch.no_grad()
def accuracy(network: nn.Module, data: Data) -> float:
    """Share of the test images that are classified right, in evaluation mode; leaves the network in training mode."""
    network.eval()
    right = [
        int((network(x).argmax(1) == y).sum())
        for x, y in zip(data.test_x.split(_CHUNK), data.test_y.split(_CHUNK), strict=True)
    ]
    network.train()
    return sum(right) / len(data.test_y)


@dataclass
class Accuracies:
    """The test accuracy some sixty times a run: an `Observe`."""

    network: nn.Module
    data: Data
    steps: int
    found: dict[int, float] = field(default_factory=dict)

    def __call__(self, step: int, x: Tensor, y: Tensor, loss: float) -> None:
        if step % max(1, self.steps // _LOOKS) == 0:
            self.found[step] = accuracy(self.network, self.data)

    def curve(self) -> dict[str, list[float]]:
        """The series for the record."""
        return curve(list(self.found.values()), list(self.found))


def curve(y: Sequence[float], x: Sequence[float] | None = None) -> dict[str, list[float]]:
    """A series for the record, over steps unless x is given: means of as many points in a row as keep it short."""
    x = range(len(y)) if x is None else x
    width = -(-len(y) // _POINTS) or 1
    starts = range(0, len(y), width)
    return {name: [fmean(values[i : i + width]) for i in starts] for name, values in (("x", x), ("y", y))}
