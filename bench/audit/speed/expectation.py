"""Predicts a pass on an H200: its time as a share of a copy, and the bound that holds. Nothing is measured."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.audit.speed.simulator import CLOCK, DRAM, LATENCY, SMS, Machine, Simulated, compiler
from normlib.kernels.traffic import KernelLaunch, Traffic

TARGET, DEVICE = "sm_90", "NVIDIA H200"
START, EACH_LAUNCH, WAIT = 1.5e-6, 1.0e-6, 1.0e-6  # seconds: the first launch, each further one, a barrier of programs
COPY_START = 2.3e-6  # seconds of a copy that moves nothing
L2_HELD = 0.6 * (60 << 20)  # bytes of loads that the cache keeps from one launch to the next (assumed)
_PUBLISHED = Path(__file__).with_name("error.csv")


@dataclass(frozen=True)
class Expectation:
    """The prediction for a pass; `copy` is 1 where it takes as long as a copy of the bytes that it has to move."""

    us: float
    copy: float
    bound: str  # DRAM, launch, issue, bytes in flight or latency, by rule of thumb
    launches: tuple[Simulated, ...]


def expect(
    launches: Sequence[tuple[KernelLaunch, Any, int]], traffic: Sequence[Traffic], bytes_to_move: float
) -> Expectation | None:
    """Returns what is expected of a pass's launches, each with its kernel and the registers of a thread.

    None where there is no telling how often a kernel's loops run.
    """
    found: list[Simulated] = []
    for (launch, kernel, registers), moved in zip(launches, traffic, strict=True):
        simulated = Machine(launch, kernel, registers).run(moved, bool(found) and _held(moved))
        if simulated is None:
            return None
        found.append(simulated)
    beside = START + EACH_LAUNCH * (len(found) - 1) + WAIT * any(moved.waits for moved in traffic)
    seconds = beside + sum(one.seconds for one in found)
    copy = (bytes_to_move / DRAM + COPY_START) / seconds
    return Expectation(round(seconds * 1e6, 2), round(copy, 3), _bound(found, seconds, beside, copy), tuple(found))


def _held(moved: Traffic) -> bool:
    """Returns whether a launch that goes backwards over what an earlier one has loaded finds it in the cache."""
    again = [name for sweep in moved.sweeps if sweep.backwards for name in sweep.loads if name in ("x", "dy")]
    return bool(again) and sum(moved.accesses[name].loads for name in again) <= L2_HELD


def _bound(found: Sequence[Simulated], seconds: float, beside: float, copy: float) -> str:
    needed = DRAM / SMS / CLOCK * LATENCY["dram_latency"]  # bytes in flight on a multiprocessor, by Little's law
    if copy >= 0.9:
        return "DRAM"
    if beside > 0.3 * seconds:
        return "launch"
    if sum(max(one.issue, one.pipe) for one in found) > 0.5 * seconds:
        return "issue"
    return "bytes in flight" if max(found, key=lambda one: one.seconds).can_fly < 1.5 * needed else "latency"


def note() -> str:
    """Returns how far off an expectation was where others have published times, or why there is none."""
    if compiler() is None:
        return "nothing is simulated: that takes a C compiler (cc or gcc)"
    with _PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    of = {}
    for mode in ("fwd", "bwd"):
        errors = [float(row["expected_us"]) / float(row["published_us"]) - 1 for row in rows if row["mode"] == mode]
        of[mode] = f"{min(errors):+.0%} to {max(errors):+.0%}"
    return (
        f"expected of a copy: simulated from machine code for an {DEVICE}, not measured; of {len(rows)} passes of "
        f"Liger's with published times it was off by {of['fwd']} forward, {of['bwd']} backward (times with host work)"
    )
