"""What runs a tensor's normalization."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from normlib.kernels.numerics import INTERPRETED

_INTERPRETED = bool(INTERPRETED.value)
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def backend_for(tensor: Tensor) -> str:
    """`triton` for CUDA and ROCm tensors; for others `interpreter` (CPU, with TRITON_INTERPRET=1) or `torch`."""
    if tensor.is_cuda:
        return "triton"
    return "interpreter" if _INTERPRETED and tensor.device.type == "cpu" else "torch"


def serves(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether the kernels can take x with these parameters; if not, PyTorch computes it, or says what is wrong.

    A parameter has x's dtype, or float32 beside a 16-bit x.
    """
    if not _is_plain(x) or backend_for(x) == "torch" or x.dtype not in FLOATING or _wants_pytorchs_rules():
        return False
    wide = torch.float32 if x.dtype.itemsize == 2 else x.dtype
    return all(p is None or (_is_plain(p) and p.device == x.device and p.dtype in (x.dtype, wide)) for p in parameters)


def _wants_pytorchs_rules() -> bool:
    """In torch.func's transforms, forward-mode AD and ONNX export: each has rules for PyTorch's own operators alone."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch.onnx.is_in_onnx_export()
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is a tensor that holds its elements itself, at strides: not sparse, nested or a wrapper as DTensor."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) and (
        not isinstance(tensor, Tensor) or is_traceable_wrapper_subclass(tensor)
    ):
        return False
    return tensor.layout == torch.strided and not tensor.is_nested
