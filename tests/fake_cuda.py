"""A fake `torch.cuda` on a machine without a GPU: the same calls, CPU tensors, and a device with known times.

`installed` replaces the parts of `torch.cuda` and `torch.profiler` that `bench` uses. Tensors that are made on `cuda`
lie on the CPU, where their values are really computed, by PyTorch or by Triton's interpreter. What the device is asked
to do is queued on the current stream and takes a known time: LAUNCH_S, the bytes of all tensors over the bandwidth of
the memory that they are found in, and ACCESS_S for each access of a Triton kernel. The L2 is modelled: only what was
used last is in it, at most L2_BYTES.

tests/fake_hosts.py has the clocks of the host. Whoever installs the fake replaces `time.perf_counter` by its host's
clock before bench imports it.
"""

from __future__ import annotations

import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from fake_hosts import RealHost
from fake_nvml import UUID, nvml
from torch.profiler import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

LAUNCH_S = 2e-6
# Of a load, store or atomic operation of a kernel's program.
ACCESS_S = 1e-7
ACCESSES = ("create_load", "create_masked_load", "create_store", "create_masked_store", "create_atomic_rmw")
DRAM_BYTES_S, L2_BYTES_S = 100e9, 400e9
L2_BYTES = 1 << 18
MEMORY_BYTES = 1 << 30
CYCLES_PER_S = 1e9
LOST = "CUDA error: an illegal memory access was encountered"
# What leaves device memory as it is: allocations, and other views of the same bytes.
QUIET = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_", "resize_"}


@dataclass(frozen=True)
class Work:
    """Something that the device was asked to do: its name, stream, first second and duration."""

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
        _now.wait(self.free)

    def query(self) -> bool:
        return self.free <= _now.host.now()

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event


class Event:
    """As torch.cuda.Event: the moment at which a stream has done what was queued before."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.timed, self.moment = enable_timing, None

    def record(self, stream: Stream | None = None) -> None:
        _now.check()
        self.moment = max(_now.host.now(), (stream or _now.stream).free)

    def query(self) -> bool:
        return self.moment is None or self.moment <= _now.host.now()

    def synchronize(self) -> None:
        _now.wait(self.moment or 0.0)

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
        with _now.host.working():
            for name, tensors, again, accesses in self.work:
                _now.run(name, tensors, accesses)
                with _disable_current_modes():
                    again()


@dataclass
class FakeDevice:
    """One device and what it was asked to do, in order."""

    host: Any = field(default_factory=RealHost)
    l2_bytes: int = L2_BYTES
    memory_bytes: int = MEMORY_BYTES
    refuses_capture: bool = False
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
        """The time that the tensor's bytes take, which from now on are in the L2 as far as they fit."""
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


_now = FakeDevice()


class _Mode(TorchDispatchMode):
    """Runs every operator on the CPU, and queues it on the fake device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if torch.device(kwargs.get("device") or "cpu").type == "cuda":
            kwargs["device"] = torch.device("cpu")
        if func.namespace == "normlib":
            # An operator of ours is made of others, which are what the device is asked to do.
            with self:
                return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
        _now.check()
        name = func._schema.name.partition("::")[2]
        if func.is_view or name in ("detach", "_unsafe_view"):
            return func(*args, **kwargs)
        with _now.host.working() if name not in QUIET else nullcontext():
            found = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]
        for tensor in results:
            _now.allocate(tensor)
        if name in ("_local_scalar_dense", "equal"):
            _now.synchronize()
        elif name not in QUIET:
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            unique = {id(tensor): tensor for tensor in (*tensors, *results)}
            _now.queue(name, tuple(unique.values()), partial(_again, func, args, kwargs, results))
        return found


def _again(func: Any, args: Any, kwargs: Any, results: list[torch.Tensor]) -> None:
    """Computes the operator again into the results that it gave before, as a graph's replay does."""
    with torch.no_grad():
        for old, new in zip(results, tree_leaves(func(*args, **kwargs)), strict=False):
            if old is not new:
                old.copy_(new)


class _Profile:
    """As torch.profiler.profile, of the device alone."""

    def __init__(self, activities: Any = None, **_: Any) -> None:
        self._from = 0

    def __enter__(self) -> _Profile:
        self._from = len(_now.done)
        return self

    def __exit__(self, *_: Any) -> None:
        self._seen = _now.done[self._from :]

    def events(self) -> list[Any]:
        return [
            SimpleNamespace(
                name=work.name,
                device_type=DeviceType.CUDA,
                is_user_annotation=False,
                time_range=SimpleNamespace(start=1e6 * work.start, elapsed_us=lambda work=work: 1e6 * work.duration),
            )
            for work in self._seen
            if work.name != "sleep"
        ]


class _Generator(torch._C.Generator):
    """As torch.Generator, that of the fake device being one of the CPU."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return super().__new__(cls, "cpu")


@contextmanager
def _stream(stream: Stream | None) -> Iterator[None]:
    before = _now.stream
    _now.stream = stream or before
    try:
        yield
    finally:
        _now.stream = before


@contextmanager
def _graph(graph: Graph, pool: Any = None, stream: Stream | None = None, **_: Any) -> Iterator[None]:
    """As torch.cuda.graph, which leaves its own stream the current one after a failure."""
    before, _now.stream = _now.stream, stream or _new_stream()
    _now.capturing = graph
    try:
        if _now.refuses_capture:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        yield
    finally:
        _now.capturing = None
    _now.stream = before


def _new_stream(device: Any = None, priority: int = 0, **_: Any) -> Stream:
    _now.streams += 1
    return Stream(device, priority, _now.streams)


def _sleep(cycles: int) -> None:
    _now.occupy("sleep", cycles / CYCLES_PER_S)


def _properties(device: Any = None) -> Any:
    return SimpleNamespace(
        name="Fake GPU",
        major=9,
        minor=0,
        multi_processor_count=132,
        warp_size=32,
        total_memory=_now.memory_bytes,
        L2_cache_size=_now.l2_bytes,
        uuid=UUID,
    )


@contextmanager
def _device(device: Any) -> Iterator[None]:
    yield


REPLACED = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "_lazy_init": lambda: None,
    "init": lambda: None,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "device": _device,
    "get_device_properties": _properties,
    "get_device_name": lambda device=None: _properties().name,
    "get_device_capability": lambda device=None: (9, 0),
    "mem_get_info": lambda device=None: (_now.memory_bytes - _now.allocated, _now.memory_bytes),
    "memory_allocated": lambda device=None: _now.allocated,
    "max_memory_allocated": lambda device=None: _now.peak,
    "reset_peak_memory_stats": lambda device=None: setattr(_now, "peak", _now.allocated),
    "empty_cache": lambda: _now.check(),
    "synchronize": lambda device=None: _now.synchronize(),
    "Stream": _new_stream,
    "Event": Event,
    "stream": _stream,
    "current_stream": lambda device=None: _now.stream,
    "default_stream": lambda device=None: _now.default,
    "CUDAGraph": Graph,
    "graph": _graph,
    "is_current_stream_capturing": lambda: _now.capturing is not None,
    "_sleep": _sleep,
}


def install(device: FakeDevice | None = None) -> Iterator[FakeDevice]:
    """Replaces `torch.cuda` by the fake; a generator that gives the device and then takes the fake away again."""
    import triton.runtime.interpreter as interpreter

    from normlib.kernels import plan

    global _now
    before, _now = _now, device or FakeDevice()
    torch._C._ensureCUDADeviceGuardSet()
    executed = interpreter.GridExecutor.__call__

    def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]

        def call() -> Any:
            with _disable_current_modes():
                return executed(self, *args, **kwargs)

        before = _now.accesses
        with _now.host.working(kernel=True):
            found = call()
        _now.queue(self.fn.__name__, tuple(tensors), call, _now.accesses - before)
        return found

    def counted(operation: Any) -> Any:
        def access(*args: Any, **kwargs: Any) -> Any:
            _now.accesses += 1
            return operation(*args, **kwargs)

        return access

    builder = interpreter.InterpreterBuilder

    patches = [mock.patch.object(torch.cuda, name, fake) for name, fake in REPLACED.items()]
    patches += [mock.patch.object(builder, name, counted(getattr(builder, name))) for name in ACCESSES]
    patches += [
        mock.patch.object(torch.profiler, "profile", _Profile),
        mock.patch.object(torch, "Generator", _Generator),
        mock.patch.object(interpreter.GridExecutor, "__call__", execute),
    ]
    for patch in patches:
        patch.start()
    # Not mock.patch.dict, which would take away every module that is imported meanwhile.
    # A plan for the interpreter's programs, which run one after another, and for the fake device's cache.
    planned, plan.INTERPRETER = plan.INTERPRETER, plan.Device(1, l2=_now.l2_bytes, cooperative=True)
    binding, sys.modules["pynvml"] = sys.modules.pop("pynvml", None), nvml()
    try:
        with _Mode():
            yield _now
    finally:
        for patch in patches:
            patch.stop()
        plan.INTERPRETER = planned
        sys.modules.pop("pynvml", None)
        if binding is not None:
            sys.modules["pynvml"] = binding
        _now = before


installed = contextmanager(install)
