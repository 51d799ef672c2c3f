"""Shared by launchers: device, layout, the dtype of statistics, and scalars as pairs of floats.

Kernels take (N, C, *) in two layouts: contiguous, and channels-last, with the channels innermost.
"""

import struct
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from normlib.kernels import plan

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
