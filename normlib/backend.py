"""What runs a tensor's normalization."""

from __future__ import annotations

import torch
from torch import Tensor

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
    if backend_for(x) == "torch" or x.dtype not in FLOATING:
        return False
    wide = torch.float32 if x.dtype.itemsize == 2 else x.dtype
    return all(p is None or (p.device == x.device and p.dtype in (x.dtype, wide)) for p in parameters)
