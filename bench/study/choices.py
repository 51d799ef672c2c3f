"""What --data and --scale can name. Imports no torch, so that a wrong name is told at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.cli import BadArgument

PACKAGED = ("digits", "mnist5k")


@dataclass(frozen=True)
class Scale:
    """Which network the experiments on images train by default, and how."""

    name: str
    about: str
    network: str
    steps: int
    lr: float = 0.1
    batch: int = 128


SCALES = {
    scale.name: scale
    for scale in (
        # By 600 steps the plain network has learnt digits too.
        Scale("pilot", "an MLP of 10 layers of 64, 600 steps; minutes on two CPU cores", "mlp", steps=600),
        # Santurkar et al. (2018): 15000 steps, VGG.
        Scale("full", "VGG-11 on CIFAR-10, 15000 steps; hours on a GPU", "vgg11", steps=15000),
        Scale("full-vgg16", "the same with VGG-16", "vgg16", steps=15000),
    )
}


def cifar10_files(folder: Path) -> tuple[list[Path], Path]:
    """Returns CIFAR-10's training files and its test file; raises BadArgument where the folder lacks them."""
    training, test = sorted(folder.glob("data_batch_*.bin")), folder / "test_batch.bin"
    if not training or not test.is_file():
        raise BadArgument(
            "--data",
            f"{str(folder)!r} is neither {', '.join(PACKAGED)} nor a folder with CIFAR-10's data_batch_*.bin and "
            "test_batch.bin",
        )
    return training, test
