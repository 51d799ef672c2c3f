"""Shared by launchers: device, layout, the dtype of statistics, scalars as pairs of floats, and counters.

Importing it does not import Triton, which takes longer than all of normlib does.

Kernels take (N, C, *) in two layouts: contiguous, and channels-last, with the channels innermost.

Counters are those of launches whose programs depend on each other: zeros before a launch and after it (barrier.py).
A device's counters are slices of a few slabs, each filled with zeros once. Launches of one stream follow each other and
pass one slice on. A launch that a CUDA graph captures has a slice that nothing else ever gets: it may run beside all
else, while the graph's own replays follow each other. So nothing but the launch itself is queued, on any stream and in
any graph, but for these, which fill counters of their own: a capture before the first launch outside of one, or when
captures have used the slab up; and a stream that is not PyTorch's own.
"""

import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from threading import Lock

import torch
from torch import Tensor
from torch.cuda import is_current_stream_capturing

from normlib.kernels import plan
from normlib.kernels.plan import cdiv, next_power_of_2


def _interpreting() -> bool:
    """Returns whether Triton interprets; where neither Triton nor the variable is there, nobody can have asked."""
    if "triton" not in sys.modules and "TRITON_INTERPRET" not in os.environ:
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


INTERPRETED = _interpreting()
_HERE = nullcontext()
# What plans have in place of each device's own values, while other ones are tried.
_tried: plan.Tuning | None = None


def device_of(tensor: torch.Tensor) -> plan.Device:
    """Returns the tensor's device as plans see it; CPU tensors run in the interpreter."""
    if tensor.is_cpu:
        return plan.INTERPRETER if _tried is None else _with(plan.INTERPRETER, _tried)
    return _properties(tensor.device.index)


def try_tuning(tuning: plan.Tuning | None) -> None:
    """Replaces every device's tuned values by these, in this process; None restores the devices' own."""
    global _tried
    _tried = tuning
    _properties.cache_clear()


@cache
def _properties(index: int | None) -> plan.Device:
    properties = torch.cuda.get_device_properties(index)
    # On AMD nothing caps a kernel's registers, so how many programs are resident can't be promised to a barrier.
    nvidia = torch.version.hip is None
    registers = plan.Device.registers if nvidia else None
    l2 = properties.L2_cache_size
    tuning = plan.tuning_of(properties.name) if _tried is None else _tried
    return plan.Device(properties.multi_processor_count, properties.warp_size, registers, l2, nvidia, tuning)


@cache  # plans are cached by the device's identity
def _with(device: plan.Device, tuning: plan.Tuning) -> plan.Device:
    return replace(device, tuning=tuning)


def on(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's device current for a launch: Triton launches on the current one."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(tensor.device)


def is_channels_last(x: Tensor) -> bool:
    """Returns whether (N, C, *) has its channels innermost: channels-last memory, or no positions at all."""
    return x.dim() == 2 or (not x.is_contiguous() and x.movedim(1, -1).is_contiguous())


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """Returns (x in one of the two layouts, whether that is channels-last); a copy only if it is in neither."""
    last = is_channels_last(x)
    return (x if last and x.movedim(1, -1).is_contiguous() else x.contiguous()), last


def like(x: Tensor, tensor: Tensor) -> Tensor:
    """Returns the tensor in x's layout, copied only if it is in another."""
    if tensor.stride() == x.stride():
        return tensor
    return torch.empty_like(x, dtype=tensor.dtype).copy_(tensor)


def statistics_dtype(x: torch.Tensor) -> torch.dtype:
    """Returns the dtype of x's statistics: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def float_pair(value: float) -> tuple[float, float]:
    """Returns (high, low) that add up to `value`: Triton passes a float as float32, and a float64 kernel needs more.

    A pair keeps 48 bits and, unlike a constexpr, costs no compilation for a new value.
    """
    high = struct.unpack("f", struct.pack("f", value))[0]
    return high, value - high


# ------------------------------------------------------------------------------------------------------- counters


# Counters in a slab (1 MiB) and, unless a launch needs more, in the slice of a stream.
SLAB = 1 << 18
SLICE = 1 << 10
# A slice begins where a line of 128 bytes does. Triton compiles a kernel anew for an address that is no multiple of 16
# bytes, and in a capture would do so there; nor do launches that run side by side contend for a line.
ALIGN = 32

_lock = Lock()
# By device and stream: the slice that is passed on.
_of_stream: dict[tuple[torch.device, int], Tensor] = {}
# By device: all slabs ever made, kept because graphs hold addresses in them, and what is left of the last one.
_slabs: dict[torch.device, list[Tensor]] = {}
_left: dict[torch.device, Tensor] = {}


def counters(n: int, device: torch.device) -> Tensor:
    """Returns at least n counters (int32) for one launch on the device's current stream: zeros, to be left as zeros.

    The device is the current one, as it is at a launch.
    """
    if INTERPRETED:
        return _zeros(n, device)
    if capturing(device):
        return _for_capture(n, device)
    # The launcher has imported it; to import it here takes a microsecond, in every call.
    stream = sys.modules["triton.runtime"].driver.active.get_current_stream(device.index)
    found = _of_stream.get((device, stream))
    return _for_stream(n, device, stream) if found is None or found.numel() < n else found


def capturing(device: torch.device) -> bool:
    """Returns whether a CUDA graph is captured on the current stream of the device, which is the current one.

    Of the devices that get here a GPU has an index, and one that stands in for it has none; to ask for the type takes
    ten times as long, in every call.
    """
    return device.index is not None and is_current_stream_capturing()


def external(device: torch.device, stream: int) -> bool:
    """Returns whether the current stream, with this handle, is not PyTorch's own: torch.cuda.ExternalStream.

    Only those are ever destroyed, and then another stream may get the handle while the launches of the first still run.
    PyTorch identifies such a stream by its handle, its own ones by a number (c10/cuda/CUDAStream.cpp).
    """
    return device.type == "cuda" and stream != 0 and torch.cuda.current_stream(device).stream_id == stream


def _for_stream(n: int, device: torch.device, stream: int) -> Tensor:
    """Returns the slice of a stream that has none so large yet, from another slab where the last one has too few left.

    A smaller slice that it had is given up: its last launch may still be running.
    """
    if external(device, stream):
        return _zeros(n, device)
    with _lock:
        found = _of_stream.get((device, stream))
        if found is None or found.numel() < n:
            # At least twice as large as the last one, so that what is given up is less than what is in use.
            size = max(next_power_of_2(n), SLICE)
            found = _take(size, device)
            if found is None:
                _add_slab(max(size, SLAB), device)
                found = _take(size, device)
                assert found is not None
            _of_stream[device, stream] = found
    return found


def _for_capture(n: int, device: torch.device) -> Tensor:
    """Returns counters for this launch only: within a capture, nothing outside it can be filled or waited for."""
    with _lock:
        found = _take(n, device)
        if found is None and n <= SLAB:
            # So that the next launch outside a capture adds a slab, for the captures after it.
            for key in [key for key in _of_stream if key[0] == device]:
                del _of_stream[key]
            _left.pop(device, None)
    return _zeros(n, device) if found is None else found


def _take(n: int, device: torch.device) -> Tensor | None:
    """Returns at least n counters that nobody has had, or None where there are too few left."""
    left, n = _left.get(device), cdiv(n, ALIGN) * ALIGN
    if left is None or left.numel() < n:
        return None
    found, _left[device] = left[:n], left[n:]
    return found


def _add_slab(n: int, device: torch.device) -> None:
    """Fills another slab, in memory that belongs to no CUDA graph.

    Another thread does it. What goes to a graph's pool PyTorch decides by the stream while it captures, but by the
    thread while torch.compile warms up for that (torch/_inductor/cudagraph_trees.py, _use_cuda_memory_pool_manager) and
    in torch.cuda.use_mem_pool. A new thread is not that one, and its current stream is the default one, which is never
    captured. Nor has it this thread's modes: inference, a tracer's or a test's dispatch.
    """
    with ThreadPoolExecutor(1) as other:
        slab = other.submit(_filled, n, device).result()
    _slabs.setdefault(device, []).append(slab)
    _left[device] = slab


def _filled(n: int, device: torch.device) -> Tensor:
    """Returns zeros once they are there, so that every stream finds them without waiting for another."""
    zeros = _zeros(n, device)
    if device.type == "cuda":
        # An event's wait, which torch.cuda.set_sync_debug_mode does not take for a mistake.
        torch.cuda.current_stream(device).record_event().synchronize()
    return zeros


def _zeros(n: int, device: torch.device) -> Tensor:
    """Returns zeros that the device's current stream fills."""
    return torch.zeros(n, dtype=torch.int32, device=device)
