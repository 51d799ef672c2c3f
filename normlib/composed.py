"""The operators that PyTorch has none of, put together from its own: what a model runs without these kernels.

Same names and signatures as in functional.py. Without a GPU they serve the layers; in bench/ they are what PyTorch and
torch.compile run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normlib.backend import transforming


def weight_norm(v: Tensor, g: Tensor, dim: int | None = 0) -> Tensor:
    """g v / ||v||, 16 bits in float32; on a GPU by PyTorch's fused kernels, which have neither jvp nor two dtypes."""
    one = -1 if dim is None else dim  # -1 is none of them: the norm is that of all of v
    if v.is_cuda and v.dtype == g.dtype and not transforming():
        return torch._weight_norm(v, g, one)
    wide = torch.promote_types(v.dtype, torch.float32)
    others = tuple(d for d in range(v.dim()) if d != one)
    # Without another dimension each element is a row, and an empty list would mean all of them.
    x = v.to(wide)
    norm = torch.linalg.vector_norm(x, dim=others, keepdim=one != -1) if others else x.abs()
    return (x * (g / norm)).to(v.dtype)
