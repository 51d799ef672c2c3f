"""A CUDA device that is this machine's CPU: what asks torch.cuda gets an answer, and tensors lie where they always do.

Streams, graphs and events keep the order that a CPU has anyway; an event has the host's time. So nothing here says how
fast a GPU is: what it shows is that everything between a command line and its report is there and fits together.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

UUID = "01234567-89ab-cdef-0123-456789abcdef"
PROPERTIES = SimpleNamespace(
    name="Made-up GPU", major=9, minor=0, multi_processor_count=4, total_memory=1 << 30, warp_size=32,
    L2_cache_size=1 << 20, uuid=UUID,
)  # fmt: skip


class OnTheCpu(TorchFunctionMode):
    """What is asked to be on a CUDA device is on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:  # which only names one
            return func(*args, **(kwargs or {}))
        return func(*map(_moved, args), **{name: _moved(value) for name, value in (kwargs or {}).items()})


def _moved(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    return "cpu" if isinstance(value, str) and value.startswith("cuda") else value


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = perf_counter()

    def query(self) -> bool:
        return False  # the host is always ahead

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * max(end.at - self.at, 1e-6)


class Stream:
    def __init__(self, device: Any = None) -> None:
        self.cuda_stream = 0

    def wait_stream(self, other: Stream) -> None:
        pass


class Graph:
    def replay(self) -> None:
        pass


@contextmanager
def made_up_cuda(monkeypatch: Any):
    """Within, torch.cuda has one device."""
    streams = [Stream()]

    @contextmanager
    def stream(one: Stream) -> Any:
        streams.append(one)
        yield
        streams.pop()

    answers = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "set_device": lambda device: None, "device": lambda device: nullcontext(),
        "get_device_properties": lambda device=None: PROPERTIES, "get_device_name": lambda device=None: PROPERTIES.name,
        "get_device_capability": lambda device=None: (PROPERTIES.major, PROPERTIES.minor),
        "mem_get_info": lambda device=None: (1 << 24, 1 << 30), "synchronize": lambda device=None: None,
        "empty_cache": lambda: None, "memory_allocated": lambda device=None: 1 << 10,
        "max_memory_allocated": lambda device=None: 1 << 11, "reset_peak_memory_stats": lambda device=None: None,
        "_sleep": lambda cycles: None, "Event": Event, "Stream": Stream, "CUDAGraph": Graph, "stream": stream,
        "graph": lambda graph, stream=None: nullcontext(), "current_stream": lambda device=None: streams[-1],
        "default_stream": lambda device=None: streams[0],
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator(_moved(device)))
    with OnTheCpu():
        yield
