"""Calls timed by the GPU's own clock: events before and after each, with the host kept out of the figure.

Three things must not be in the time of a call:
- what earlier calls left in the cache. A buffer of twice its size is cleared before each cold call, before the first
  event. As with triton.testing.do_bench and nvbench, the lines that this leaves are dirty, for every provider alike.
- the host. Where Python takes longer to launch a call than the device to run it, the device waits between the two
  events. So the device sleeps first, until the host has launched the whole block. The host's work is in `call_us`.
- another provider's caches of code and pages: the first call of a block is not counted.

It is a loop of our own because none that exists does this for several functions in turns: triton.testing.do_bench
measures one function from warm-up to result, has no idea of the host, and stops at a count fixed beforehand; nvbench's
Python package (cuda-bench) stops by noise and holds the device back likewise, but also runs one benchmark at a time to
its end, inside its own `run_all_benchmarks`, on its own streams and on NVIDIA's devices alone.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import torch

# Where the device does not tell the size of its cache: half of what do_bench clears, and beyond any L2 so far.
UNKNOWN_CACHE = 128 << 20
# ROCm tells the L2 of one chiplet; behind it lies AMD's Infinity Cache, of up to this size (Instinct MI300).
INFINITY_CACHE = 256 << 20
# Long enough for clocks to rise (do_bench's default), and calls enough for what happens once; see triton#2306.
WARM_UP_S, WARM_UP_CALLS = 0.025, 3
# A block is short, so that rivals stay side by side: a stop by noise wants five of them.
BLOCK_S, BLOCK_CALLS = 0.01, 20
# The device's first sleep is this much longer than the host should need, each further one twice as long as the last.
SLEEP_MARGIN = 1.25
# A host that is not done by then never will be: the call waits for the device. A block is launched in half of BLOCK_S.
LONGEST_SLEEP_S = 4 * BLOCK_S
# Cycles of the sleep by which its speed is measured: some hundred microseconds.
_CALIBRATION = 200_000


class Event(Protocol):
    """A mark in the stream of work, as torch.cuda.Event."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end: Any, /) -> float: ...


class Gpu:
    """The little of torch.cuda that timing needs, on the current stream of the current device."""

    def __init__(self, device: torch.device) -> None:
        self._buffer = torch.empty(2 * cache_bytes(device), dtype=torch.int8, device=device)
        self._device = device

    def now(self) -> float:
        """The host's clock in seconds."""
        return perf_counter()

    def event(self) -> Event:
        """An event that has a time."""
        event: Event = torch.cuda.Event(enable_timing=True)
        return event

    def flush(self) -> None:
        """Puts other data in the place of everything that is in the cache."""
        self._buffer.zero_()

    def sleep(self, cycles: int) -> None:
        """Keeps the device busy, and the host not."""
        torch.cuda._sleep(cycles)

    def synchronize(self) -> None:
        """Waits for the device; raises what went wrong on it since the last time."""
        torch.cuda.synchronize(self._device)

    def alive(self) -> bool:
        """Whether the device still answers."""
        try:
            self.synchronize()
        except RuntimeError:
            return False
        return True


def cache_bytes(device: torch.device) -> int:
    """The size of the last cache before the device's memory."""
    told = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))
    if torch.version.hip:
        return max(told, INFINITY_CACHE)
    return told or UNKNOWN_CACHE


@dataclass(frozen=True)
class Pace:
    """What the instrument's own work takes: `launch_s` the host for a call's flush and events, `flush_s` the device."""

    launch_s: float
    flush_s: float
    cycles_per_s: float  # of the sleep


def pace(gpu: Gpu) -> Pace:
    """Measured once the device's clocks have risen."""

    def own() -> None:
        start, end = gpu.event(), gpu.event()
        gpu.flush()
        start.record()
        end.record()

    _, launch_s = _warm_up(gpu, own)
    flush_s, sleep_s = (_seconds(gpu, work) for work in (gpu.flush, lambda: gpu.sleep(_CALIBRATION)))
    return Pace(launch_s, flush_s, _CALIBRATION / sleep_s)


class Lane:
    """One provider on the GPU: warmed up here, and timed block by block.

    `host_bound` tells that its calls wait for the device, so that the host is in its times all the same.
    """

    def __init__(self, gpu: Gpu, run: Callable[[], object], pace: Pace) -> None:
        self.run, self._gpu, self._pace = run, gpu, pace
        self.call_s, launch_s = _warm_up(gpu, run)
        launch_s += pace.launch_s
        # The host launches while the device sleeps, so that a block takes the one and then the other.
        whole = self.call_s + launch_s + pace.flush_s
        self.calls = max(1, min(BLOCK_CALLS, int(BLOCK_S / whole)))
        self._sleep_s = min(LONGEST_SLEEP_S, SLEEP_MARGIN * (self.calls + 1) * launch_s)
        self.host_bound = False

    def cold(self) -> list[float]:
        """A block of calls, microseconds each, with nothing of theirs in the cache."""
        return self._block(cold=True)

    def hot(self) -> list[float]:
        """A block of calls, microseconds each, that find in the cache what the last one left."""
        return self._block(cold=False)

    def _block(self, cold: bool) -> list[float]:
        while True:
            samples, ahead = self._timed(cold)
            if ahead or self.host_bound:
                return samples
            # The device woke before the host was done: what it waited for the host is in some samples.
            self.host_bound = self._sleep_s >= LONGEST_SLEEP_S
            self._sleep_s = min(LONGEST_SLEEP_S, 2 * self._sleep_s)

    def _timed(self, cold: bool) -> tuple[list[float], bool]:
        """A block's samples, and whether the host stayed ahead of the device throughout."""
        gpu, run = self._gpu, self.run
        marks = [(gpu.event(), gpu.event()) for _ in range(self.calls)]
        awake = gpu.event()
        with _no_collection():
            if not self.host_bound:
                gpu.sleep(int(self._sleep_s * self._pace.cycles_per_s))
            awake.record()
            run()
            for start, end in marks:
                if cold:
                    gpu.flush()
                start.record()
                run()
                end.record()
            ahead = not awake.query()
            gpu.synchronize()
        return [1e3 * start.elapsed_time(end) for start, end in marks], ahead


def _warm_up(gpu: Gpu, run: Callable[[], object]) -> tuple[float, float]:
    """Seconds that a call takes and that launching it takes, by ever longer batches.

    The first is that of the longest batch; the second that of the best, for the driver holds the host up when too much
    is queued.
    """
    batch, calls, spent, launch_s = 1, 0, 0.0, float("inf")
    while True:
        began = gpu.now()
        for _ in range(batch):
            run()
        launch_s = min(launch_s, (gpu.now() - began) / batch)
        gpu.synchronize()
        took = gpu.now() - began
        calls, spent = calls + batch, spent + took
        if calls >= WARM_UP_CALLS and spent >= WARM_UP_S:
            return took / batch, launch_s
        batch *= 2


def _seconds(gpu: Gpu, work: Callable[[], object]) -> float:
    work()
    start, end = gpu.event(), gpu.event()
    start.record()
    work()
    end.record()
    gpu.synchronize()
    return max(start.elapsed_time(end), 1e-3) / 1e3


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps Python's garbage collector from holding up the host, as timeit does."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
