"""The device that a tensor is on, as a plan and a launch need it."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from normlib.kernels import plan

_HERE = nullcontext()


def device_of(tensor: torch.Tensor) -> plan.Device:
    """The plan's view of the tensor's device; CPU tensors run in the interpreter."""
    return plan.INTERPRETER if tensor.is_cpu else _properties(tensor.device.index)


@cache
def _properties(index: int | None) -> plan.Device:
    properties = torch.cuda.get_device_properties(index)
    # On AMD nothing caps a kernel's registers, so how many programs are resident can't be promised to a barrier.
    nvidia = torch.version.hip is None
    registers = plan.Device.registers if nvidia else None
    l2 = properties.L2_cache_size
    tuning = plan.tuning_of(properties.name)
    return plan.Device(properties.multi_processor_count, properties.warp_size, registers, l2, nvidia, tuning)


def on(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's device current for a launch: Triton launches on the current one."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(tensor.device)
