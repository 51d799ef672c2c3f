"""What a call launches, and how long the device is at work on it, by PyTorch's profiler."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from torch import profiler

from bench.measure.timing.clock import Gpu

# CUPTI detaches in a thread of its own, which starts at a call of the driver after the profile. Until it is done,
# launches still cost the host more, and a profile that begins sees nothing (kineto issue 1554). Nothing tells when it
# is done: some waits for the device, with a pause after each. Chosen, not measured.
_DETACH_WAITS, _DETACH_S = 3, 0.01
# A profile that saw nothing is made once more, after the pauses above.
_TRIES = 2


@dataclass(frozen=True)
class Launch:
    """A kernel, copy or fill as the device ran it."""

    name: str
    duration_us: float


class Unclear(Exception):
    """The profile does not fall into the calls that were made; the text says why, in one line."""


def launched(gpu: Gpu, run: Callable[[], object], calls: int) -> list[Launch]:
    """Returns everything the device does in so many cold calls, flushes included, in the order of its start."""
    # Else Kineto stays attached to the driver, and every later launch of this process costs the host more (pytorch
    # issue 144455). Detaching and CUDA graphs get along since CUDA 12.6, the oldest that torch 2.11 is built for.
    os.environ.setdefault("TEARDOWN_CUPTI", "1")
    for _ in range(_TRIES):
        found = _profiled(gpu, run, calls)
        _detached(gpu)
        if found:
            break
    return found


def _profiled(gpu: Gpu, run: Callable[[], object], calls: int) -> list[Launch]:
    gpu.synchronize()
    with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profiled:
        for _ in range(calls):
            gpu.flush()
            run()
        gpu.synchronize()
    events = [e for e in profiled.events() if e.device_type == profiler.DeviceType.CUDA and not e.is_user_annotation]
    events.sort(key=lambda event: event.time_range.start)
    return [Launch(event.name, event.time_range.elapsed_us()) for event in events]


def _detached(gpu: Gpu) -> None:
    """Waits until the profiler has let go of the driver."""
    for _ in range(_DETACH_WAITS):
        gpu.synchronize()
        time.sleep(_DETACH_S)


def of_one_call(launches: Sequence[Launch], calls: int) -> tuple[float, int]:
    """Microseconds at work, the median over the calls, and launches, of one call; the flush before it left out.

    Raises Unclear unless every call launches the same after its flush, in the same order: what then belongs to which
    call is not known.
    """
    if not launches:
        raise Unclear("the profiler saw nothing on the device")
    each, rest = divmod(len(launches), calls)
    if rest:
        raise Unclear(f"{len(launches)} launches in {calls} calls")
    chunks = [launches[i : i + each] for i in range(0, len(launches), each)]
    names = {tuple(launch.name for launch in chunk) for chunk in chunks}
    if len(names) > 1:
        raise Unclear("not every call launches the same")
    return median(sum(launch.duration_us for launch in chunk[1:]) for chunk in chunks), each - 1
