"""Times calls by the GPU's own clock, events before and after each, with the host kept out of the result.

Three things must not be part of a call's time:
- Data that earlier calls left in the cache. A buffer of twice the cache's size is cleared before each cold call and
  before its first event. As with triton.testing.do_bench and nvbench, this leaves dirty lines, for all providers alike.
- The host. Where Python takes longer to launch a call than the device to run it, the device waits between the two
  events. So the device sleeps first, until the host has launched the whole block. The host's work is in `call_us`.
- Another provider's caches of code and pages: the first call of a block is not counted.

And nothing of a call may be missing in its time: between two calls the device must do no more than the instrument's own
work, and when a call has ended no stream may be busy with it any longer (`BlockTimer.doubt`).

No existing loop does this for several functions in turns. triton.testing.do_bench measures one function from warm-up
to result, does not know of the host, and stops at a count fixed beforehand. nvbench's Python package (cuda-bench) stops
by noise and holds the device back likewise, but it runs one benchmark to its end, inside its own `run_all_benchmarks`,
on its own streams and only on NVIDIA's devices.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter

import torch

from bench.measure import persisting
from bench.measure.telemetry import cache_bytes
from bench.measure.witness import Witness

# Long enough for clocks to rise (do_bench's default), and calls enough for what happens once; see triton#2306.
WARM_UP_S, WARM_UP_CALLS = 0.025, 3
# A block is short, so that rivals stay side by side: stopping by noise takes five of them.
BLOCK_S, BLOCK_CALLS = 0.01, 20
# The device's first sleep is this much longer than the host should need; each further sleep doubles.
SLEEP_MARGIN = 1.25
# A host that is not done by then never will be: the call waits for the device. A block is launched in half of BLOCK_S.
LONGEST_SLEEP_S = 4 * BLOCK_S
# Device time between two calls, or after the last, that is more than the host's and the clock's own scatter.
_UNSEEN_S = 50e-6
# Tries of finding the device idle when the calls have ended.
_BACKLOG_TRIES = 3
# Cycles of the sleep by which its speed is measured: some hundred microseconds.
_CALIBRATION = 200_000


class Gpu:
    """The part of torch.cuda that timing needs, on the current stream of the current device."""

    def __init__(self, device: torch.device) -> None:
        self._buffer = torch.empty(2 * cache_bytes(device), dtype=torch.int8, device=device)
        self._device = device

    def now(self) -> float:
        """Returns the host's clock in seconds."""
        return perf_counter()

    def event(self) -> torch.cuda.Event:
        """Returns an event that records a time."""
        return torch.cuda.Event(enable_timing=True)

    def flush(self) -> None:
        """Replaces everything in the cache by other data."""
        self._buffer.zero_()

    def sleep(self, cycles: int) -> None:
        """Keeps the device, but not the host, busy."""
        torch.cuda._sleep(cycles)

    def synchronize(self) -> None:
        """Waits for the device; raises what went wrong on it since the last time."""
        torch.cuda.synchronize(self._device)

    def release_cache(self) -> None:
        """Takes back what was set aside in the cache: it would survive every flush."""
        persisting.release()

    def set_aside(self) -> int:
        """Returns the bytes of the cache that are set aside, or that a flush leaves as they are."""
        return max(persisting.set_aside(), 2 * cache_bytes(self._device) - self._buffer.nbytes)

    def alive(self) -> bool:
        """Returns whether the device still answers."""
        try:
            self.synchronize()
        except RuntimeError:
            return False
        return True


@dataclass(frozen=True)
class Overhead:
    """Seconds of the instrument's own work: `launch_s` on the host for flush and events, `flush_s` on the GPU."""

    launch_s: float
    flush_s: float
    cycles_per_s: float  # of the sleep


def measure_overhead(gpu: Gpu) -> Overhead:
    """Measures the overhead once the device's clocks have risen."""

    def own() -> None:
        start, end = gpu.event(), gpu.event()
        gpu.flush()
        start.record()
        end.record()

    _, launch_s = _warm_up(gpu, own)
    flush_s, sleep_s = (_seconds(gpu, work) for work in (gpu.flush, lambda: gpu.sleep(_CALIBRATION)))
    return Overhead(launch_s, flush_s, _CALIBRATION / sleep_s)


class BlockTimer:
    """Times one provider's calls block by block; warms the call up first.

    `witness` changes the inputs of cold calls, and looks at their results. `host_bound` is set where calls wait for the
    device, so that the host is in their times all the same.
    """

    def __init__(self, gpu: Gpu, run: Callable[[], object], overhead: Overhead, witness: Witness | None = None) -> None:
        self.run, self._gpu, self._overhead, self._witness = run, gpu, overhead, witness
        self.call_s, launch_s = _warm_up(gpu, run)
        launch_s += overhead.launch_s
        self._between_s = overhead.flush_s
        if witness:
            launched, took = self._witnessing(witness)
            launch_s, self._between_s = launch_s + launched, self._between_s + took
        # The host launches while the device sleeps, so that a block takes the one and then the other.
        whole = self.call_s + launch_s + self._between_s
        self.calls = max(1, min(BLOCK_CALLS, int(BLOCK_S / whole)))
        self._sleep_s = min(LONGEST_SLEEP_S, SLEEP_MARGIN * (self.calls + 1) * launch_s)
        self.host_bound = False
        self._gaps: list[float] = []
        self._cold: list[float] = []
        self._set_aside = 0

    def cold(self) -> list[float]:
        """Times a block of calls with a cold cache; microseconds each."""
        return self._block(cold=True)

    def hot(self) -> list[float]:
        """Times a block of calls that find in the cache what the last one left; microseconds each."""
        return self._block(cold=False)

    def doubt(self) -> str:
        """Returns why the cold times cannot be believed, or ""."""
        if self._set_aside:
            return f"no flush clears {self._set_aside} bytes of the cache, which were set aside"
        gap_s, call_s = (median(times) / 1e6 if times else 0.0 for times in (self._gaps, self._cold))
        unseen = gap_s - self._between_s
        if unseen > max(_UNSEEN_S, self._between_s / 2, 2 * call_s):
            return f"the device worked for {1e6 * unseen:.0f} us before the call of {1e6 * call_s:.1f} us was to begin"
        left = min(self._backlog_s() for _ in range(_BACKLOG_TRIES))
        if left > max(_UNSEEN_S, 0.25 * call_s * self.calls):
            ended = f"{self.calls} calls of {1e6 * call_s:.1f} us had ended"
            return f"the device worked for {1e6 * left:.0f} us on after {ended}"
        return ""

    def _witnessing(self, witness: Witness) -> tuple[float, float]:
        """Returns the seconds that looking at one call takes on the host and on the device."""
        gpu, found = self._gpu, self.run()
        began, *marks = gpu.now(), gpu.event(), gpu.event()
        gpu.sleep(int(min(LONGEST_SLEEP_S, BLOCK_S) * self._overhead.cycles_per_s))
        marks[0].record()
        witness.before()
        witness.after(found)
        marks[1].record()
        launched = gpu.now() - began
        gpu.synchronize()
        return launched, marks[0].elapsed_time(marks[1]) / 1e3

    def _backlog_s(self) -> float:
        """Returns how long the device goes on after the current stream has done several calls."""
        gpu, end = self._gpu, self._gpu.event()
        gpu.synchronize()
        for _ in range(self.calls):
            self.run()
        end.record()
        end.synchronize()
        ended = gpu.now()
        gpu.synchronize()
        return gpu.now() - ended

    def _block(self, cold: bool) -> list[float]:
        while True:
            samples, gaps, ahead = self._timed(cold)
            if ahead or self.host_bound:
                if cold:
                    self._cold += samples
                    self._gaps += gaps if ahead else []
                return samples
            # The device woke before the host was done, so some samples include waiting for the host.
            self.host_bound = self._sleep_s >= LONGEST_SLEEP_S
            self._sleep_s = min(LONGEST_SLEEP_S, 2 * self._sleep_s)

    def _timed(self, cold: bool) -> tuple[list[float], list[float], bool]:
        """Returns a block's samples, the microseconds between them, and whether the host stayed ahead throughout."""
        gpu, run, witness = self._gpu, self.run, self._witness if cold else None
        marks = [(gpu.event(), gpu.event()) for _ in range(self.calls)]
        awake = gpu.event()
        if cold:
            gpu.release_cache()
        if witness:
            witness.block(self.calls)
        with _no_collection():
            if not self.host_bound:
                gpu.sleep(int(self._sleep_s * self._overhead.cycles_per_s))
            awake.record()
            run()
            for start, end in marks:
                if witness:
                    witness.before()
                if cold:
                    gpu.flush()
                start.record()
                found = run()
                end.record()
                if witness:
                    witness.after(found)
                del found
            ahead = not awake.query()
            gpu.synchronize()
        if cold:
            self._set_aside = max(self._set_aside, gpu.set_aside())
        gaps = [1e3 * ended.elapsed_time(start) for (_, ended), (start, _) in pairwise(marks)]
        return [1e3 * start.elapsed_time(end) for start, end in marks], gaps, ahead


def _warm_up(gpu: Gpu, run: Callable[[], object]) -> tuple[float, float]:
    """Returns the seconds that a call takes and that launching it takes, from ever longer batches.

    The first comes from the longest batch. The second is the least of all, because the driver holds the host up when
    too much is queued.
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
    return max(float(start.elapsed_time(end)), 1e-3) / 1e3


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
