"""Input, training loop and result of a run of an experiment. Imports torch only to train.

A loss is the mean cross-entropy in nats of training batches; an auc is a loss's mean over all steps of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bench.study.data import ImageData

T = TypeVar("T")
# Points of one series: "x" with "y", or with "low" and "high" where it is a band.
Points = Mapping[str, Sequence[float]]

# A loss "at the end" is the mean of this share of the steps: one batch says little.
_END = 0.1
# Points of a stored curve; more would not be seen on a page.
_POINTS = 150
# Images a forward pass in evaluation, so that its activations fit in memory.
_CHUNK = 2048


@dataclass(frozen=True)
class StudyScale:
    """The network that experiments on images train by default, with steps, learning rate and batch size."""

    name: str
    about: str
    network: str
    steps: int
    lr: float = 0.1
    batch: int = 128


SCALES = {
    scale.name: scale
    for scale in (
        # In 600 steps the plain network learns digits too.
        StudyScale("pilot", "an MLP of 10 layers of 64, 600 steps; minutes on two CPU cores", "mlp", steps=600),
        # Santurkar et al. (2018): 15000 steps, VGG.
        StudyScale("full", "VGG-11 on CIFAR-10, 15000 steps; hours on a GPU", "vgg11", steps=15000),
        StudyScale("full-vgg16", "the same with VGG-16", "vgg16", steps=15000),
    )
}


@dataclass(frozen=True)
class StudySetting:
    """The input of every run: the images, the device, and the scale; it builds and trains networks."""

    data: ImageData
    device: torch.device
    scale: StudyScale

    def network(self, layer: str, *, depth: int = 10, **changes: Any) -> nn.Module:
        """Returns the scale's network with this norm. `depth` is an MLP's; `changes` are `behind` and `dropout`."""
        from bench.study import networks

        if self.scale.network in networks.VGG:
            norm = networks.norm(layer, dims=2)
            return networks.vgg(self.scale.network, self.data.classes, norm, **changes).to(self.device)
        return self.mlp(layer, depth=depth, **changes)

    def mlp(self, layer: str, options: Mapping[str, Any] | None = None, **changes: Any) -> nn.Module:
        """Returns an MLP at every scale; `options` are the norm's, `changes` those of networks.mlp."""
        from bench.study import networks

        norm = networks.norm(layer, **(options or {}))
        return networks.mlp(self.data.image, self.data.classes, norm, **changes).to(self.device)

    def batches(self, seed: int, size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields `steps` batches, with each image once before any comes again, in an order that the seed decides."""
        import torch

        shuffle, images = torch.Generator().manual_seed(seed), len(self.data.y)
        whole = max(1, images // size)
        for step in range(steps):
            if step % whole == 0:
                order = torch.randperm(images, generator=shuffle).to(self.device)
            chosen = order[(step % whole) * size :][:size]
            yield self.data.x[chosen], self.data.y[chosen]

    def train(
        self,
        network: nn.Module,
        seed: int,
        observe: Callable[[int, Tensor, Tensor], None] | None = None,
        *,
        lr: float | None = None,
        size: int | None = None,
        steps: int | None = None,
    ) -> list[float]:
        """Trains by plain SGD on cross-entropy; rate, batch size and steps are the scale's unless given.

        Returns the loss of every step. Training ends at the first that is not finite; from there on they are inf.
        `observe(step, x, y)` is called when the gradients are there and the weights are not yet updated.
        """
        import torch
        from torch.nn.functional import cross_entropy

        network.train()
        sgd = torch.optim.SGD(network.parameters(), lr or self.scale.lr)
        losses, steps = list[float](), steps or self.scale.steps
        for step, (x, y) in enumerate(self.batches(seed, size or self.scale.batch, steps)):
            loss = cross_entropy(network(x), y)
            losses.append(loss.item())
            if not isfinite(losses[-1]):
                return losses[:-1] + [inf] * (steps - step)
            sgd.zero_grad()
            loss.backward()
            if observe:
                observe(step, x, y)
            sgd.step()
        return losses

    def watch(
        self, network: nn.Module, seed: int, look: Callable[[Tensor, Tensor], T], looks: int, lr: float | None = None
    ) -> tuple[list[float], dict[int, T]]:
        """Trains and calls `look` with the batch at about `looks` steps, after backward and before the update.

        Returns the losses, and by step what `look` returned.
        """
        every, seen = max(1, self.scale.steps // looks), dict[int, T]()

        def observe(step: int, x: Tensor, y: Tensor) -> None:
            if step % every == 0:
                seen[step] = look(x, y)

        return self.train(network, seed, observe, lr=lr), seen

    def accuracy(self, network: nn.Module) -> float:
        """Returns the share of the test images that the network classifies right; leaves it in training mode."""
        import torch

        network.eval()
        chunks = zip(self.data.test_x.split(_CHUNK), self.data.test_y.split(_CHUNK), strict=True)
        with torch.no_grad():
            right = sum(int((network(x).argmax(1) == y).sum()) for x, y in chunks)
        network.train()
        return right / len(self.data.test_y)


@dataclass(frozen=True)
class StudyOutcome:
    """The result of a run; `diverged` says which loss was no longer finite, if one was."""

    values: Mapping[str, float]
    series: Mapping[str, Points] = field(default_factory=dict)
    diverged: str = ""


def at(name: str, setting: float) -> str:
    """Returns the name of a value taken at one setting of a sweep: `loss at 0.1`."""
    return f"{name} at {setting:g}"


def end(losses: Sequence[float]) -> float:
    """Returns the mean loss at the end of a run; inf where it diverged."""
    return fmean(losses[-max(1, round(_END * len(losses))) :])


def summary(losses: Sequence[float]) -> dict[str, float]:
    """Returns the values that most experiments report of a run's losses."""
    return {"auc": fmean(losses), "loss": end(losses)}


def diverged(losses: Sequence[float]) -> str:
    """Says at which step a loss stopped being finite; "" if at none."""
    step = next((step for step, loss in enumerate(losses) if not isfinite(loss)), None)
    return "" if step is None else f"the loss is not finite from step {step} on"


def curve(y: Sequence[float], x: Sequence[float] | None = None) -> Points:
    """Returns a series for the record, over steps unless x is given; neighbours are averaged to keep it short."""
    x = range(len(y)) if x is None else x
    width = -(-len(y) // _POINTS) or 1
    starts = range(0, len(y), width)
    return {name: [fmean(values[i : i + width]) for i in starts] for name, values in (("x", x), ("y", y))}
