"""The training loop: plain SGD on cross-entropy with a constant learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf, isfinite

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.study.data import ImageData

# Images a forward pass in evaluation, so that its activations fit in memory.
_CHUNK = 2048


@dataclass(frozen=True)
class Batches:
    """`steps` batches of one size, each image once before any comes again; the seed decides the order."""

    data: ImageData
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


def train(
    network: nn.Module, batches: Batches, lr: float, observe: Callable[[int, Tensor, Tensor], None] | None = None
) -> list[float]:
    """Returns the loss of every step. Training ends at the first that is not finite; from there on they are inf.

    `observe(step, x, y)` is called when the gradients are there and the weights are not yet updated.
    """
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
            observe(step, x, y)
        sgd.step()
    return losses


@torch.no_grad()
def accuracy(network: nn.Module, data: ImageData) -> float:
    """Returns the share of the test images that are classified right, in evaluation; leaves the network in training."""
    network.eval()
    chunks = zip(data.test_x.split(_CHUNK), data.test_y.split(_CHUNK), strict=True)
    right = sum(int((network(x).argmax(1) == y).sum()) for x, y in chunks)
    network.train()
    return right / len(data.test_y)
