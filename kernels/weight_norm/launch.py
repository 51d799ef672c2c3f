"""The kernels of weight normalization: rows x (M, N), each scaled to the length that its weight gives.

    norm = sqrt(sum(x^2))      x_hat = x / norm      y = weight x_hat
    dw   = sum(dy x_hat)       dx = weight / norm (dy - x_hat dw)

x is what Salimans and Kingma call v, weight their g and y their w; dx follows from y's two factors by the product rule,
d(1 / norm) = -x / norm^3 dx, and is orthogonal to x.

Squares are taken of x / scale, a power of two near the row's largest element, so that none overflows and none that
counts is lost: norm, y and both gradients are as good at 1e-30 and 1e30 as at 1. The scale divides out exactly, and
the norm itself is never formed: saved for backward are norm / scale and 1 / scale. A row without a length (all zeros)
is NaN, as 0 / 0 is.

A row that fits stays in registers, as equal power-of-two chunks: forward moves x and y once, backward dy, x and dx
once. A longer one is swept twice, the second time backwards so that it meets the cache. No row needs another's results.
"""

import torch
from torch import Tensor

from normlib.kernels import plan as plans
from normlib.kernels.host import device_of, on
from normlib.kernels.plan import Device
from normlib.kernels.row_norm import plan as row_plan
from normlib.kernels.row_norm.launch import as_rows
from normlib.kernels.traffic import Moves, launch
from normlib.kernels.weight_norm.kernels import (
    _weight_norm_backward_kernel,
    _weight_norm_backward_loop_kernel,
    _weight_norm_forward_kernel,
    _weight_norm_forward_loop_kernel,
)


def forward(x: Tensor, weight: Tensor, device: Device | None = None) -> tuple[Tensor, Tensor]:
    """Returns (y like x but contiguous, norm (2, M)) of x (M, ...), whose rows are x[i], and weight of M."""
    m = len(x)
    n = x.numel() // max(m, 1)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    norm = torch.empty((2, m), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    if x.numel() == 0:
        return y, norm.zero_()
    rows = as_rows(x, n)
    plan = row_plan.row_forward(n, x.element_size(), device or device_of(x), waits=False)
    stride = rows.stride(0)
    arguments = (y, norm, rows, weight, m, stride)
    constants = {"ALIGN": plans.alignment(stride), "N": n, **plan.options}
    with on(x):
        if plan.chunks:
            launch(
                *(_weight_norm_forward_kernel, (plans.cdiv(m, plan.block_m),), *arguments),
                **constants,
                CHUNKS=plan.chunks,
                BLOCK_M=plan.block_m,
                BLOCK_N=plan.block_n,
                moves=lambda: Moves(plan, {"x": 1, "weight": 1}, ("y", "norm")),
            )
        else:
            moves = lambda: Moves(plan, {"x": 2, "weight": 1}, ("y", "norm"), again=x.nbytes, span=2 * x.nbytes // m)
            launch(
                *(_weight_norm_forward_loop_kernel, (m,), *arguments), **constants, BLOCK_N=plan.block_n, moves=moves
            )
    return y, norm


def backward(
    dy: Tensor,
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    need_dx: bool,
    need_dw: bool,
    device: Device | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Returns (dx like x but contiguous, dw like weight), None where one is not needed; norm as forward gave it."""
    m = len(x)
    n = x.numel() // max(m, 1)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if need_dx else None
    dw = torch.empty(weight.shape, dtype=weight.dtype, device=x.device) if need_dw else None
    if x.numel() == 0:
        return dx, None if dw is None else dw.zero_()
    x_rows, dy_rows = as_rows(x, n), as_rows(dy, n)
    plan = row_plan.row_backward(m, n, x.element_size(), device or device_of(x), whole=False).rows
    strides = dy_rows.stride(0), x_rows.stride(0)
    arguments = (dx, dw, dy_rows, x_rows, norm, weight, m, *strides)
    constants = {"ALIGN": plans.alignment(*strides), "N": n, **plan.options}
    with on(x):
        if plan.chunks:
            launch(
                *(_weight_norm_backward_kernel, (plans.cdiv(m, plan.block_m),), *arguments),
                **constants,
                CHUNKS=plan.chunks,
                BLOCK_M=plan.block_m,
                BLOCK_N=plan.block_n,
                moves=lambda: Moves(plan, {"dy": 1, "x": 1, "norm": 1, "weight": int(need_dx)}, ("dx", "dw")),
            )
        else:
            launch(
                *(_weight_norm_backward_loop_kernel, (m,), *arguments),
                **constants,
                BLOCK_N=plan.block_n,
                moves=lambda: Moves(
                    *(plan, {"dy": 1 + need_dx, "x": 1 + need_dx, "norm": 1, "weight": int(need_dx)}, ("dx", "dw")),
                    again=need_dx * 2 * x.nbytes,
                    span=need_dx * 3 * x.nbytes // m,
                ),
            )
    return dx, dw
