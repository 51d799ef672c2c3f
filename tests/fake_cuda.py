"""Replaces `torch.cuda` on a machine without a GPU: the same calls, CPU tensors, and the device of fake_device.py.

`installed` replaces the parts of `torch.cuda` and `torch.profiler` that `bench` uses. Tensors that are made on `cuda`
lie on the CPU, where their values are really computed, by PyTorch or by Triton's interpreter. Whoever installs the fake
replaces `time.perf_counter` by its host's clock before bench imports it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from fake_device import Event, FakeDevice, Graph, Stream, current, using
from fake_nvml import UUID, nvml
from torch.profiler import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

CYCLES_PER_S = 1e9
ACCESSES = ("create_load", "create_masked_load", "create_store", "create_masked_store", "create_atomic_rmw")
# What leaves device memory as it is: allocations, and other views of the same bytes.
QUIET = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_", "resize_"}


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
        current().check()
        name = func._schema.name.partition("::")[2]
        if func.is_view or name in ("detach", "_unsafe_view"):
            return func(*args, **kwargs)
        with current().host.working() if name not in QUIET else nullcontext():
            found = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]
        for tensor in results:
            current().allocate(tensor)
        if name in ("_local_scalar_dense", "equal"):
            current().synchronize()
        elif name not in QUIET:
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            unique = {id(tensor): tensor for tensor in (*tensors, *results)}
            current().queue(name, tuple(unique.values()), partial(_again, func, args, kwargs, results))
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
        self._from = len(current().done)
        return self

    def __exit__(self, *_: Any) -> None:
        self._seen = current().done[self._from :]

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


class _Driver:
    """The calls of CUDA's driver library that concern the persisting part of the L2; 0 is success."""

    def cuCtxSetLimit(self, limit: int, size: Any) -> int:
        current().set_aside = getattr(size, "value", size)
        return 0

    def cuCtxGetLimit(self, size: Any, limit: int) -> int:
        size._obj.value = current().set_aside
        return 0

    def cuCtxResetPersistingL2Cache(self) -> int:
        return 0


class _Generator(torch._C.Generator):
    """As torch.Generator, that of the fake device being one of the CPU."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return super().__new__(cls, "cpu")


@contextmanager
def _stream(stream: Stream | None) -> Iterator[None]:
    before = current().stream
    current().stream = stream or before
    try:
        yield
    finally:
        current().stream = before


@contextmanager
def _graph(graph: Graph, pool: Any = None, stream: Stream | None = None, **_: Any) -> Iterator[None]:
    """As torch.cuda.graph, which leaves its own stream the current one after a failure."""
    before, current().stream = current().stream, stream or _new_stream()
    current().capturing = graph
    try:
        if current().refuses_capture:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        yield
    finally:
        current().capturing = None
    current().stream = before


def _new_stream(device: Any = None, priority: int = 0, **_: Any) -> Stream:
    current().streams += 1
    return Stream(device, priority, current().streams)


def _sleep(cycles: int) -> None:
    current().occupy("sleep", cycles / CYCLES_PER_S)


def _properties(device: Any = None) -> Any:
    return SimpleNamespace(
        name="Fake GPU",
        major=9,
        minor=0,
        multi_processor_count=132,
        warp_size=32,
        total_memory=current().memory_bytes,
        L2_cache_size=current().l2_bytes,
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
    "mem_get_info": lambda device=None: (current().memory_bytes - current().allocated, current().memory_bytes),
    "memory_allocated": lambda device=None: current().allocated,
    "max_memory_allocated": lambda device=None: current().peak,
    "reset_peak_memory_stats": lambda device=None: setattr(current(), "peak", current().allocated),
    "empty_cache": lambda: current().check(),
    "synchronize": lambda device=None: current().synchronize(),
    "Stream": _new_stream,
    "Event": Event,
    "stream": _stream,
    "current_stream": lambda device=None: current().stream,
    "default_stream": lambda device=None: current().default,
    "CUDAGraph": Graph,
    "graph": _graph,
    "is_current_stream_capturing": lambda: current().capturing is not None,
    "_sleep": _sleep,
}


@contextmanager
def installed(device: FakeDevice | None = None) -> Iterator[FakeDevice]:
    """Replaces `torch.cuda` by the fake, and takes it away again at the end."""
    import triton.runtime.interpreter as interpreter

    from normlib.kernels import plan

    torch._C._ensureCUDADeviceGuardSet()
    executed, builder = interpreter.GridExecutor.__call__, interpreter.InterpreterBuilder

    def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]

        def call() -> Any:
            with _disable_current_modes():
                return executed(self, *args, **kwargs)

        before = current().accesses
        with current().host.working(kernel=True):
            found = call()
        current().queue(self.fn.__name__, tuple(tensors), call, current().accesses - before)
        return found

    def counted(operation: Any) -> Any:
        def access(*args: Any, **kwargs: Any) -> Any:
            current().accesses += 1
            return operation(*args, **kwargs)

        return access

    with ExitStack() as stack:
        fake = stack.enter_context(using(device or FakeDevice()))
        replaced = [(torch.cuda, name, value) for name, value in REPLACED.items()]
        replaced += [(builder, name, counted(getattr(builder, name))) for name in ACCESSES]
        replaced += [(torch.profiler, "profile", _Profile), (torch, "Generator", _Generator)]
        replaced += [(interpreter.GridExecutor, "__call__", execute)]
        # A plan for the interpreter's programs, which run one after another, and for the fake device's cache.
        replaced += [(plan, "INTERPRETER", plan.Device(1, l2=fake.l2_bytes, cooperative=True))]
        loaded = ctypes.CDLL
        replaced += [
            (ctypes, "CDLL", lambda name, *a, **k: _Driver() if name == "libcuda.so.1" else loaded(name, *a, **k))
        ]
        for owner, name, value in replaced:
            stack.enter_context(mock.patch.object(owner, name, value))
        energetic = nvml(nvmlDeviceGetTotalEnergyConsumption=lambda gpu: fake.energy_mj())
        # Not mock.patch.dict, which would take away every module that is imported meanwhile.
        binding, sys.modules["pynvml"] = sys.modules.pop("pynvml", None), energetic
        stack.callback(lambda: sys.modules.update(pynvml=binding) if binding else sys.modules.pop("pynvml", None))
        stack.enter_context(_Mode())
        yield fake
