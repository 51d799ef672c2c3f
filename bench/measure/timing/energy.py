"""Measures the energy of a call with the counter of its whole board that NVML keeps.

The counter moves in steps of some tens of milliseconds. So calls run in a row, always one batch ahead of the host,
until it has moved often enough. The energy between two readings at which it has just moved, divided by the calls that
the device did between them, is that of a call. What the board draws with nothing to do is part of it.

The least and the greatest step are its range. They hold what changes between steps: the counter's own clock, a batch
that is half done, a board that grows warmer. No repetition shows how well the sensor is calibrated, nor that on an A100
or H100 it looks for a quarter of the time (Z. Yang, K. Adamek, W. Armour, Part-time Power Measurements: nvidia-smi's
Lack of Attention, 2023, arXiv:2312.02741). Equal calls without a pause are what such a sensor sees best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from bench.measure.timing.clock import Gpu

# A batch is what a step may be wrong by, and long enough for the host to launch the next one meanwhile.
BATCH_S = 0.002
# Some counters move every ten milliseconds and others every hundred; a step of ours is no shorter than this.
STEP_S, STEPS = 0.05, 5
# A counter that has not moved often enough by then does not say more.
MOST_S = 2.0


@dataclass(frozen=True)
class CallEnergy:
    """Millijoules of one call: over all steps, in the least and in the greatest one; or None and a remark why."""

    mj: float | None = None
    low: float | None = None
    high: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class _Reading:
    calls: int  # that the device had done
    moment: float
    mj: int


def of_call(gpu: Gpu, run: Callable[[], object], call_s: float, counter: Callable[[], int | None]) -> CallEnergy:
    """Measures a call that takes `call_s` seconds; `counter` returns millijoules, None where there is no counter."""
    if (known := counter()) is None:
        return CallEnergy(remark="NVML has no counter of this device's energy")
    batch = max(1, round(BATCH_S / call_s))

    def launch() -> torch.cuda.Event:
        for _ in range(batch):
            run()
        done = gpu.event()
        done.record()
        return done

    readings: list[_Reading] = []
    calls, began, running = 0, gpu.now(), launch()
    while len(readings) <= STEPS and gpu.now() - began < MOST_S:
        queued = launch()
        running.synchronize()
        running, calls = queued, calls + batch
        moment, mj = gpu.now(), counter()
        if mj is not None and mj > known and (not readings or moment - readings[-1].moment >= STEP_S):
            readings.append(_Reading(calls, moment, mj))
        known = known if mj is None else mj
    gpu.synchronize()
    if len(readings) <= STEPS:
        return CallEnergy(remark=f"NVML's counter of energy moved {len(readings)} times in {MOST_S:g} s")
    steps = [(after.mj - before.mj) / (after.calls - before.calls) for before, after in pairwise(readings)]
    first, last = readings[0], readings[-1]
    return CallEnergy((last.mj - first.mj) / (last.calls - first.calls), min(steps), max(steps))
