"""A simulated GPU with known times: streams, events, graphs, memory, an L2, and the host's clock.

Work is queued on the current stream and takes a known time: LAUNCH_S, the bytes of all tensors over the bandwidth of
the memory that they are found in, and ACCESS_S for each access of a Triton kernel. The L2 holds what was used last, at
most L2_BYTES. tests/fake_cuda.py puts this device in the place of torch.cuda.
"""

from __future__ import annotations

import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

LAUNCH_S = 2e-6
# Of a load, store or atomic operation of a kernel's program.
ACCESS_S = 1e-7
DRAM_BYTES_S, L2_BYTES_S = 100e9, 400e9
L2_BYTES = 1 << 18
# Power with nothing to do, and what work adds; the counter of energy moves so often.
IDLE_W, BUSY_W, TICK_S = 100, 400, 0.02
MEMORY_BYTES = 1 << 30
LOST = "CUDA error: an illegal memory access was encountered"


class RealHost:
    """The machine's clock, which stands still while the CPU does the fake device's work.

    A launch takes QUEUE_S instead, and one of Triton's interpreter, which is slow, a SHARE of its processor time, or
    MOST_S, so that few calls fill the time that a measurement takes.
    """

    QUEUE_S, SHARE, MOST_S = 1e-4, 0.2, 5e-3

    def __init__(self) -> None:
        self._clock, self._stood = time.perf_counter, 0.0

    def now(self) -> float:
        return self._clock() - self._stood

    @contextmanager
    def working(self, kernel: bool = False) -> Iterator[None]:
        """Within, the CPU does the device's work."""
        began, worked = self._clock(), time.process_time()
        try:
            yield
        finally:
            share = min(self.SHARE * (time.process_time() - worked), self.MOST_S) if kernel else 0.0
            taken = max(self.QUEUE_S, share)
            self._stood += self._clock() - began - taken

    def wait_until(self, moment: float) -> None:
        while (left := moment - self.now()) > 0:
            time.sleep(left)


@dataclass
class VirtualHost:
    """A clock that only moves by `queue_s` for everything that is queued, and by waiting."""

    queue_s: float = 50e-6
    moment: float = 0.0

    def now(self) -> float:
        return self.moment

    @contextmanager
    def working(self, kernel: bool = False) -> Iterator[None]:
        yield
        self.moment += self.queue_s

    def wait_until(self, moment: float) -> None:
        self.moment = max(self.moment, moment)


@dataclass(frozen=True)
class Work:
    """Work of the device: its name, stream, first second and duration."""

    name: str
    stream: int
    start: float
    duration: float


@dataclass(eq=False)
class Stream:
    """As torch.cuda.Stream; `free` is when the device will have done what is queued on it."""

    device_: Any = None
    priority: int = 0
    cuda_stream: int = 0
    free: float = 0.0

    def wait_stream(self, other: Stream) -> None:
        self.free = max(self.free, other.free)

    def wait_event(self, event: Event) -> None:
        self.free = max(self.free, event.moment or 0.0)

    def synchronize(self) -> None:
        current().wait(self.free)

    def query(self) -> bool:
        return self.free <= current().host.now()

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event


class Event:
    """As torch.cuda.Event: the moment at which a stream has done what was queued before."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.timed, self.moment = enable_timing, None

    def record(self, stream: Stream | None = None) -> None:
        current().check()
        self.moment = max(current().host.now(), (stream or current().stream).free)

    def query(self) -> bool:
        return self.moment is None or self.moment <= current().host.now()

    def synchronize(self) -> None:
        current().wait(self.moment or 0.0)

    def elapsed_time(self, end: Event) -> float:
        if not (self.timed and end.timed):
            raise RuntimeError("both events need enable_timing")
        if not (self.query() and end.query()):
            raise RuntimeError("the device has not got there: CUDA error: device not ready")
        return 1e3 * (end.moment - self.moment)


class Graph:
    """As torch.cuda.CUDAGraph: what a capture has seen, which a replay queues again."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.work: list[tuple[str, tuple[Any, ...], Any, int]] = []

    def replay(self) -> None:
        with current().host.working():
            for name, tensors, again, accesses in self.work:
                current().run(name, tensors, accesses)
                with _disable_current_modes():
                    again()


@dataclass
class FakeDevice:
    """One device and what it was asked to do, in order."""

    host: Any = field(default_factory=RealHost)
    l2_bytes: int = L2_BYTES
    memory_bytes: int = MEMORY_BYTES
    refuses_capture: bool = False
    set_aside: int = 0  # bytes of the L2 that somebody wants to persist
    lost: bool = False
    default: Stream = field(default_factory=Stream)
    done: list[Work] = field(default_factory=list)
    allocated: int = 0
    peak: int = 0
    accesses: int = 0
    capturing: Graph | None = None

    def __post_init__(self) -> None:
        self.stream = self.default
        self.streams, self.busy_until = 0, 0.0
        self.cached: OrderedDict[int, int] = OrderedDict()
        self.known: set[int] = set()

    def check(self) -> None:
        if self.lost:
            raise torch.AcceleratorError(LOST)

    def wait(self, moment: float) -> None:
        self.check()
        if self.capturing is not None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        self.host.wait_until(moment)

    def synchronize(self) -> None:
        self.wait(self.busy_until)

    def energy_mj(self) -> int:
        """Returns the millijoules used at the last tick of the counter, as NVML does."""
        moment = self.host.now() // TICK_S * TICK_S
        busy = sum(min(work.duration, max(0.0, moment - work.start)) for work in self.done)
        return int(1e3 * (IDLE_W * moment + BUSY_W * busy))

    def queue(self, name: str, tensors: tuple[Any, ...], again: Any, accesses: int = 0) -> None:
        """Queues work on the current stream, or adds it to the graph that is being captured."""
        self.check()
        if self.capturing is not None:
            self.capturing.work.append((name, tensors, again, accesses))
            return
        self.run(name, tensors, accesses)

    def run(self, name: str, tensors: tuple[Any, ...], accesses: int) -> None:
        self.occupy(name, LAUNCH_S + accesses * ACCESS_S + sum(self._seconds(tensor) for tensor in tensors))

    def occupy(self, name: str, duration: float) -> None:
        self.check()
        start = max(self.host.now(), self.stream.free)
        self.stream.free = start + duration
        self.busy_until = max(self.busy_until, self.stream.free)
        self.done.append(Work(name, self.stream.cuda_stream, start, duration))

    def _seconds(self, tensor: torch.Tensor) -> float:
        """Returns the time for the tensor's bytes, which from now on are in the L2 as far as they fit."""
        place, size = tensor.untyped_storage().data_ptr(), tensor.nelement() * tensor.element_size()
        hit = min(self.cached.pop(place, 0), size)
        self.cached[place] = min(size, self.l2_bytes)
        while sum(self.cached.values()) > self.l2_bytes:
            oldest, bytes_ = next(iter(self.cached.items()))
            over = sum(self.cached.values()) - self.l2_bytes
            self.cached[oldest] = bytes_ - min(over, bytes_)
            if not self.cached[oldest]:
                del self.cached[oldest]
        return hit / L2_BYTES_S + (size - hit) / DRAM_BYTES_S

    def allocate(self, tensor: torch.Tensor) -> None:
        """Counts a new tensor's memory until it is gone; raises OutOfMemoryError where there is no more."""
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if not size or place in self.known:
            return
        if self.allocated + size > self.memory_bytes:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes")
        self.known.add(place)
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(storage, self._free, place, size)

    def _free(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.allocated -= size


_current = [FakeDevice()]


def current() -> FakeDevice:
    """Returns the device that is used at present."""
    return _current[-1]


@contextmanager
def using(device: FakeDevice) -> Iterator[FakeDevice]:
    """Within, `device` is the current one."""
    _current.append(device)
    try:
        yield device
    finally:
        _current.pop()
