"""Shared by all plans: the device, values tuned on it, launch options, and the merge of partial results.

A plan goes from shape and device to tiles, warps and splits. It is pure Python, without torch and triton, and holds
every choice that changes how a kernel is compiled or launched, so that tests can compile a plan ahead of time for a
device that is not there, and run any plan in the interpreter. What is chosen and does not follow from shape and device
has a name and a default; `make tune` measures other values on a GPU and keeps them in tuned/. Each family has its plans
in its folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from math import gcd
from pathlib import Path


@dataclass(frozen=True, eq=False)  # hashed by identity
class Tuning:
    """Values measured on a device in place of defaults: by the plans they are for, by name."""

    values: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def of(self, plans: str, **defaults: int) -> dict[str, int]:
        return {**defaults, **self.values.get(plans, {})}


UNTUNED = Tuning()


def tuning_file(device_name: str) -> Path:
    """Returns where a device's values and constants are kept, by PyTorch's name for it: tuned/nvidia-h200.json."""
    return Path(__file__).parent / "tuned" / f"{re.sub('[^a-z0-9]+', '-', device_name.lower()).strip('-')}.json"


def tuning_of(device_name: str) -> Tuning:
    """Returns the values tuned on such a device, if any; its file may have only constants."""
    file = tuning_file(device_name)
    values = json.loads(file.read_text(encoding="utf-8")).get("values") if file.exists() else None
    return Tuning(values) if values else UNTUNED


@dataclass(frozen=True)
class Device:
    """The properties of a device that plans depend on."""

    multiprocessors: int
    warp_size: int = 32
    registers: int | None = 65536  # of an NVIDIA multiprocessor; None where the compiler takes no cap (AMD)
    l2: int = 0  # bytes of cache that all multiprocessors share; 0 where none is to be counted on
    cooperative: bool = False  # whether programs of one launch may wait for each other
    tuning: Tuning = UNTUNED


# The interpreter runs programs one after another at some 2 ms each: as few as show that a split works.
INTERPRETER = Device(multiprocessors=1)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def alignment(*lengths: int) -> int:
    """Returns the largest power of two, 16 at most, that divides every length: the widest aligned load, in elements.

    Triton itself sees in an argument only whether 16 divides it.
    """
    return gcd(16, *lengths)


def launch_options(threads: int, device: Device, programs: int = 1) -> dict[str, int]:
    """Returns the number of warps and, on NVIDIA, the registers a thread may have with `programs` a multiprocessor.

    Left alone, ptxas spills a few values to get under the next step of occupancy; a plan chooses its own occupancy.
    """
    options = {"num_warps": max(threads // device.warp_size, 1)}
    if device.registers is not None:
        options["maxnreg"] = min(device.registers // (threads * programs) // 8 * 8, 255)  # handed out in eights
    return options


@dataclass(frozen=True)
class MergePlan:
    """Partial results of P programs for N columns, merged block_n columns a program, block_p rows at a time."""

    block_p: int
    block_n: int
    options: dict[str, int]


@cache
def merge(programs: int, columns: int, device: Device) -> MergePlan:
    """Returns the second stage's plan: narrow column blocks where there are many rows to add, to fill the device."""
    block_p = 16 if programs <= 16 else 64  # of two sizes, for programs may follow the batch
    block_n = min(max(1024 // block_p, 16), next_power_of_2(columns), 128)
    return MergePlan(block_p, block_n, launch_options(128, device))


@cache
def sums(programs: int, columns: int, device: Device) -> MergePlan:
    """Returns the plan of adding programs' partial sums: 16 to a thread, and many rows at once where they are short.

    The shape of a block depends on the number of programs, which may follow the batch, in two cases only.
    """
    block_p = 16 if programs <= 16 else 64 if columns >= 4096 else 256
    block_n = min(2048 // block_p, next_power_of_2(columns))
    return MergePlan(block_p, block_n, launch_options(128, device))


@cache
def merge_ranks(ranks: int, columns: int, device: Device) -> MergePlan:
    """Returns the plan of merging messages of all processes: every rank in one block, whose values stay in registers.

    A thread has four values, and a program four channels: with eight channels, compiled for sm_90, float64 spills.
    """
    block_p = next_power_of_2(ranks)
    block_n = min(max(512 // block_p, 1), next_power_of_2(columns), 4)
    threads = min(max(block_p * block_n // 4, 32), 512)
    return MergePlan(block_p, block_n, launch_options(threads, device))
