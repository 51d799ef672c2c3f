"""The device that a tensor is on, as a plan and a launch need it."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from normlib.kernels import plan
from normlib.kernels.numerics import INTERPRETED


def device_of(tensor: torch.Tensor) -> plan.Device:
    """The plan's view of the tensor's device; CPU tensors run in the interpreter."""
    if tensor.device.type == "cpu":
        return plan.INTERPRETER
    return _properties(tensor.device.index)


@cache
def _properties(index: int | None) -> plan.Device:
    properties = torch.cuda.get_device_properties(index)
    registers = None if torch.version.hip else plan.Device.registers
    return plan.Device(properties.multi_processor_count, properties.warp_size, registers)


def on(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's device current for a launch: Triton launches on the current one."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def runs_kernels(tensor: torch.Tensor) -> bool:
    """Whether a kernel can run on the tensor: it is on a GPU, or on the CPU of an interpreting process."""
    return tensor.device.type == "cuda" or (tensor.device.type == "cpu" and bool(INTERPRETED.value))
