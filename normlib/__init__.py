"""BatchNorm, LayerNorm and RMSNorm as Triton kernels, behind PyTorch's own signatures."""

from normlib import functional
from normlib.backend import backend_for
from normlib.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normlib.convert import convert, revert
from normlib.layer_norm import LayerNorm
from normlib.rms_norm import RMSNorm

__version__ = "0.1.0"

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "LayerNorm",
    "RMSNorm",
    "backend_for",
    "convert",
    "functional",
    "revert",
]
