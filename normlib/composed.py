"""The operators that PyTorch has none of, put together from its own: what a model runs without these kernels.

Same names and signatures as in functional.py. Without a GPU they serve the layers; in bench/ they are what PyTorch and
torch.compile run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normlib.backend import transforming
from normlib.sequences import Lengths, Steps, over_steps


def sequence_batch_norm(
    input: Steps,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    lengths: Lengths | None = None,
    batch_first: bool = False,
) -> Steps:
    """Batch norm of all steps of all sequences."""

    def norm(steps: Tensor) -> Tensor:
        return torch.nn.functional.batch_norm(steps, running_mean, running_var, weight, bias, training, momentum, eps)

    return over_steps(norm, input, lengths, batch_first)


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
