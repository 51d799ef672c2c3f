"""The kernels of layer norm and RMS norm: rows x (M, N), normalized one by one. RMS norm is layer norm with mean = 0.

    mean  = sum(x) / N   (CENTRED; else 0)    var = sum((x - mean)^2) / N        rstd = 1 / sqrt(var + eps)
    x_hat = (x - mean) rstd                   y = x_hat weight + bias

    wdy = weight dy      c1 = sum(x_hat wdy) / N      c2 = sum(wdy) / N   (CENTRED; else 0)
    dx  = rstd (wdy - x_hat c1 - c2)          dw = sum over rows of dy x_hat        db = sum over rows of dy

    with a residual      z = x + residual, rounded to x's dtype, is normalized in x's place and written
                         dx + dz is the gradient of both, dz being what arrives at z from elsewhere
    ZERO_CENTRED         1 + weight in weight's place
    PARTIAL_N < N        rstd is of a row's first PARTIAL_N columns alone, not CENTRED: var and c1 (a sum over the whole
                         row all the same) are divided by PARTIAL_N, and c1 is in dx of those columns only

A row that fits stays in registers, as a few power-of-two chunks (plan.row_chunks): forward moves x and y once (with a
residual also that and z), backward dy, x and dx once (and dz). A longer one is swept twice, the second time backwards
so that it meets the cache. The backward grid is persistent: each program adds dw and db of its rows in registers and
leaves one partial row of each; a second stage adds the partials in a fixed order. Saved for backward: x (or z), rstd
and, if CENTRED, the mean as a pair of floats.
"""

import torch
from torch import Tensor

from normlib.kernels import plan as plans
from normlib.kernels.counters import counters
from normlib.kernels.host import device_of, on
from normlib.kernels.numerics import float_pair
from normlib.kernels.plan import Device
from normlib.kernels.reduction import sum_partials
from normlib.kernels.row_norm import plan as row_plan
from normlib.kernels.row_norm.narrow import _row_norm_backward_kernel, _row_norm_forward_kernel
from normlib.kernels.row_norm.wide import (
    _row_norm_backward_sliced_kernel,
    _row_norm_forward_loop_kernel,
    _row_norm_input_gradient_loop_kernel,
    _row_norm_weight_gradient_kernel,
)


def as_rows(x: Tensor, n: int) -> Tensor:
    """x (..., n) as (M, n) with unit stride along a row; a copy only if its strides allow no such view."""
    rows = x.reshape(-1, n)
    return rows if rows.stride(1) == 1 or n == 1 else rows.contiguous()


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    n: int,
    device: Device | None = None,
    residual: Tensor | None = None,
    z: Tensor | None = None,
    zero_centred: bool = False,
    partial_n: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y like x but contiguous, mean (2, M) or (0,), rstd (M,)) of x (..., n).

    With a residual, of x's shape and dtype, it is x + residual that is normalized, and written into z (contiguous).
    Where rstd is of the first partial_n columns alone there is neither a residual nor a mean.
    """
    rows = as_rows(x, n)
    m = rows.shape[0]
    stats = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    mean = torch.empty((2, m) if centred else (0,), dtype=stats, device=x.device)
    rstd = torch.empty(m, dtype=stats, device=x.device)
    if x.numel() == 0:
        return y, mean.zero_(), rstd.zero_()
    plan = row_plan.row_forward(n, x.element_size(), device or device_of(x), tensors=2 if residual is None else 4)
    residual_rows = None if residual is None else as_rows(residual, n)
    strides = rows.stride(0), (rows if residual_rows is None else residual_rows).stride(0)
    arguments = (
        *(y, mean if centred else None, rstd, rows, weight, bias, residual_rows, z),
        *(m, *strides, *float_pair(eps)),
    )
    constants = {"ALIGN": plans.alignment(*strides), "N": n, "PARTIAL_N": partial_n or n}
    constants |= {"CENTRED": centred, "ZERO_CENTRED": zero_centred}
    with on(x):
        if plan.chunks:
            _row_norm_forward_kernel[(plans.cdiv(m, plan.block_m),)](
                *arguments, **constants, CHUNKS=plan.chunks, BLOCK_M=plan.block_m, **plan.options
            )
        else:
            _row_norm_forward_loop_kernel[(min(m, plan.programs),)](
                *(*arguments, n), **constants, BLOCK_N=plan.block_n, **plan.options
            )
    return y, mean, rstd


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    centred: bool,
    n: int,
    dw_dtype: torch.dtype | None,
    db_dtype: torch.dtype | None,
    need_dx: bool,
    device: Device | None = None,
    dz: Tensor | None = None,
    zero_centred: bool = False,
    partial_n: int | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dw, db); dw and db (n,) in the given dtypes, None where the dtype is None, dx None unless needed.

    Of a norm with a residual, x is the z that forward wrote, and dz the gradient of z's other uses, added to dx.
    """
    x_rows, dy_rows = as_rows(x, n), as_rows(dy, n)
    m = x_rows.shape[0]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if need_dx else None
    dw, db = (None if t is None else torch.empty(n, dtype=t, device=x.device) for t in (dw_dtype, db_dtype))
    outputs = tuple(t for t in (dw, db) if t is not None)
    if x.numel() == 0:
        return dx, None if dw is None else dw.zero_(), None if db is None else db.zero_()
    device = device or device_of(x)
    plan = row_plan.row_backward(m, n, x.element_size(), device, whole=need_dx and bool(outputs))
    partials = torch.empty((len(outputs), plan.programs, n), dtype=rstd.dtype, device=x.device)
    sums = {"DW": dw is not None, "DB": db is not None}
    dz_rows = None if dz is None else as_rows(dz, n)
    strides = dy_rows.stride(0), x_rows.stride(0), (x_rows if dz_rows is None else dz_rows).stride(0)
    saved = (dy_rows, x_rows, mean if centred else None, rstd)
    constants = {"ALIGN": plans.alignment(*strides), "N": n, "CENTRED": centred, **plan.rows.options}
    with on(x):
        if plan.rows.chunks:
            _row_norm_backward_kernel[(plan.programs,)](
                *(dx, partials, *saved, weight, dz_rows),
                *(m, *strides),
                **constants,
                CHUNKS=plan.rows.chunks,
                PARTIAL_N=partial_n or n,
                **sums,
                BLOCK_M=plan.rows.block_m,
                ZERO_CENTRED=zero_centred,
            )
        elif plan.slices:
            sums_of_rows = torch.empty((2, plan.slices, m), dtype=rstd.dtype, device=x.device)
            arrived = counters(3 * plan.programs, x.device)
            _row_norm_backward_sliced_kernel[(plan.slices, plan.programs)](
                *(dx, partials, sums_of_rows, arrived, *saved, weight, dz_rows),
                *(m, plan.block_rows, *strides),
                **constants,
                BLOCK_N=plan.rows.block_n,
                BLOCK_K=plans.next_power_of_2(plan.slices),
                PARTIAL_N=partial_n or n,
                **sums,
                ZERO_CENTRED=zero_centred,
            )
        else:
            if need_dx:
                _row_norm_input_gradient_loop_kernel[(m,)](
                    *(dx, *saved, weight, dz_rows),
                    *(m, *strides),
                    **constants,
                    BLOCK_N=plan.rows.block_n,
                    PARTIAL_N=partial_n or n,
                    ZERO_CENTRED=zero_centred,
                )
            if outputs:
                _row_norm_weight_gradient_kernel[(plans.cdiv(n, plan.block_columns), plan.programs)](
                    *(partials, *saved),
                    *(m, *strides[:2]),
                    **constants,
                    BLOCK_M=plan.block_rows,
                    BLOCK_N=plan.block_columns,
                    **sums,
                )
        if outputs:
            sum_partials(partials, outputs, plans.merge(plan.programs, n, device))
    return dx, dw, db
