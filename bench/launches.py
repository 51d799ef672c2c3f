"""What a call launches, and how long the device is at work on it, by PyTorch's profiler."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from torch.profiler import DeviceType, ProfilerActivity, profile

from bench.gpu_clock import Gpu


@dataclass(frozen=True)
class Launch:
    """A kernel, copy or fill as the device ran it."""

    name: str
    duration_us: float


class Unclear(Exception):
    """The profile does not fall into the calls that were made; the text says why, in one line."""


def launched(gpu: Gpu, run: Callable[[], object], calls: int) -> list[Launch]:
    """Everything the device does in so many cold calls, flushes included, in the order of its start."""
    # Else Kineto stays attached to the driver, and every later launch of this process costs the host more (pytorch
    # issue 144455). Detaching and CUDA graphs get along since CUDA 12.6, the oldest that torch 2.11 is built for.
    os.environ.setdefault("TEARDOWN_CUPTI", "1")
    gpu.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(calls):
            gpu.flush()
            run()
        gpu.synchronize()
    gpu.synchronize()  # it detaches at the next call of the driver: this one, and none that is timed
    events = [e for e in profiled.events() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    events.sort(key=lambda event: event.time_range.start)
    return [Launch(event.name, event.time_range.elapsed_us()) for event in events]


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
