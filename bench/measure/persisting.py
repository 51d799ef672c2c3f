"""The part of an NVIDIA GPU's L2 that a process may set aside for data that survives a flush (CUDA's persisting L2)."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch

# CUlimit's CU_LIMIT_PERSISTING_L2_CACHE_SIZE in cuda.h.
_LIMIT = 0x06


@cache
def driver() -> Any:
    """Returns CUDA's driver library; None where there is none, as on ROCm."""
    if torch.version.hip is not None:
        return None
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def release() -> None:
    """Gives the part that was set aside, and all lines in it, back to everybody."""
    if driver() is not None:
        driver().cuCtxSetLimit(_LIMIT, ctypes.c_size_t(0))
        driver().cuCtxResetPersistingL2Cache()


def set_aside() -> int:
    """Returns the bytes that are set aside at present; 0 where the driver cannot tell."""
    size = ctypes.c_size_t(0)
    if driver() is None or driver().cuCtxGetLimit(ctypes.byref(size), _LIMIT):
        return 0
    return size.value
