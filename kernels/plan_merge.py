"""Plans of second stages: how partial results are merged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from normlib.kernels.plan_device import Device, launch_options, next_power_of_2


@dataclass(frozen=True)
class MergePlan:
    """Partial results of P programs for N columns, merged block_n columns a program, block_p rows at a time."""

    block_p: int
    block_n: int
    options: dict[str, int]


@cache
def merge(programs: int, columns: int, device: Device) -> MergePlan:
    """The second stage's plan: narrow column blocks where there are many rows to add, to fill the device."""
    block_p = 16 if programs <= 16 else 64  # of two sizes, for programs may follow the batch
    block_n = min(max(1024 // block_p, 16), next_power_of_2(columns), 128)
    return MergePlan(block_p, block_n, launch_options(128, device))


@cache
def merge_ranks(ranks: int, columns: int, device: Device) -> MergePlan:
    """How messages of all processes are merged: every rank in one block, whose values stay in registers.

    A thread has four values, and a program four channels: with eight channels, compiled for sm_90, float64 spills.
    """
    block_p = next_power_of_2(ranks)
    block_n = min(max(512 // block_p, 1), next_power_of_2(columns), 4)
    threads = min(max(block_p * block_n // 4, 32), 512)
    return MergePlan(block_p, block_n, launch_options(threads, device))
