"""What runs a tensor's normalization."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from normlib.kernels.numerics import INTERPRETED

CPU_RUNS_KERNELS = bool(INTERPRETED.value)
# What x may be, and for each what its parameters may be: x's dtype, or float32 beside a 16-bit x.
_PARAMETERS = {
    torch.float32: (torch.float32,),
    torch.float16: (torch.float16, torch.float32),
    torch.bfloat16: (torch.bfloat16, torch.float32),
    torch.float64: (torch.float64,),
}
FLOATING = tuple(_PARAMETERS)


def backend_for(tensor: Tensor) -> str:
    """`triton` for CUDA and ROCm tensors; for others `interpreter` (CPU, with TRITON_INTERPRET=1) or `torch`."""
    if tensor.is_cuda:
        return "triton"
    return "interpreter" if CPU_RUNS_KERNELS and tensor.is_cpu else "torch"


def serves(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether the kernels can take x with these parameters; if not, PyTorch computes it, or says what is wrong.

    A parameter has x's dtype, or float32 beside a 16-bit x.
    """
    return suits(x, *parameters) and backend_for(x) != "torch"


def suits(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether x and its parameters are what the operators take, on whatever device they are."""
    if not _is_plain(x) or x.dtype not in _PARAMETERS or transforming():
        return False
    device, dtypes = x.device, _PARAMETERS[x.dtype]
    for p in parameters:  # a loop: all() with a generator takes three times as long, in every call
        if p is not None and not (_is_plain(p) and p.dtype in dtypes and p.device == device):
            return False
    return True


def transforming() -> bool:
    """In torch.func's transforms, forward-mode AD or ONNX export: each has rules for PyTorch's own operators alone."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        # PyTorch imports its exporter when it is first asked for; until then nothing is being exported.
        or ("torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export())
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is a tensor that holds its elements itself, at strides: not sparse, nested or a wrapper as DTensor."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) and (
        not isinstance(tensor, Tensor) or is_traceable_wrapper_subclass(tensor)
    ):
        return False
    return tensor.layout is torch.strided and not tensor.is_nested
