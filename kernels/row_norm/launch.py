"""The kernels of layer norm and RMS norm: rows x (M, N), normalized one by one. RMS norm is layer norm with mean = 0.

    mean  = sum(x) / N   (CENTRED; else 0)    var = sum((x - mean)^2) / N        rstd = 1 / sqrt(var + eps)
    x_hat = (x - mean) rstd                   y = x_hat weight + bias

    wdy = weight dy      c1 = sum(x_hat wdy) / N      c2 = sum(wdy) / N   (CENTRED; else 0)
    dx  = rstd (wdy - x_hat c1 - c2)          dw = sum over rows of dy x_hat        db = sum over rows of dy

    with a residual      z = x + residual, rounded to x's dtype, is normalized in x's place and written
                         dx + dz is the gradient of both, dz being what arrives at z from elsewhere
    ZERO_CENTRED         1 + weight in weight's place
    PARTIAL_N < N        rstd is of only a row's first PARTIAL_N columns, not CENTRED: var and c1 (a sum over the whole
                         row all the same) are divided by PARTIAL_N, and c1 is in dx of those columns only

A row that fits stays in registers, as equal power-of-two chunks (plan.row_tile): forward moves x and y once (with a
residual also that and z), backward dy, x and dx once (and dz). A longer one does too, in slices whose programs wait for
each other, where a device allows that; else it is swept twice, the second time backwards so that it meets the cache.
The backward grid is persistent: each program adds dw and db of its rows in registers and leaves one partial row of
each; a second stage adds the partials in a fixed order. Saved for backward: x (or z), rstd and, if CENTRED, the mean as
a pair of floats.
"""

from fractions import Fraction

import torch
from torch import Tensor

from normlib.kernels import plan as plans
from normlib.kernels.host import counters, device_of, float_pair, on
from normlib.kernels.plan import Device
from normlib.kernels.reduction import sum_partials
from normlib.kernels.row_norm import plan as row_plan
from normlib.kernels.row_norm.narrow import _row_norm_backward_kernel, _row_norm_forward_kernel
from normlib.kernels.row_norm.sliced import _row_norm_forward_sliced_kernel
from normlib.kernels.row_norm.wide import (
    _row_norm_forward_loop_kernel,
    _row_norm_input_gradient_loop_kernel,
    _row_norm_weight_gradient_kernel,
)
from normlib.kernels.traffic import Moves, launch


def as_rows(x: Tensor, n: int) -> Tensor:
    """Returns x (..., n) as (M, n) with unit stride along a row; a copy only if its strides allow no such view."""
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
    """Returns (y like x but contiguous, mean (2, M) or (0,), rstd (M,)) of x (..., n).

    With a residual, of x's shape and dtype, it is x + residual that is normalized, and written into z (contiguous).
    Where rstd is of only the first partial_n columns there is neither a residual nor a mean.
    """
    rows = as_rows(x, n)
    m = rows.shape[0]
    stats = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    mean = torch.empty((2, m) if centred else (0,), dtype=stats, device=x.device)
    rstd = torch.empty(m, dtype=stats, device=x.device)
    if x.numel() == 0:
        return y, mean.zero_(), rstd.zero_()
    tensors = 2 if residual is None else 4
    plan = row_plan.row_forward(n, x.element_size(), device or device_of(x), tensors)
    residual_rows = None if residual is None else as_rows(residual, n)
    strides = rows.stride(0), (rows if residual_rows is None else residual_rows).stride(0)
    arguments = (
        *(y, mean if centred else None, rstd, rows, weight, bias, residual_rows, z),
        *(m, *strides, *float_pair(eps)),
    )
    constants = {"ALIGN": plans.alignment(*strides), "N": n, "PARTIAL_N": partial_n or n, **plan.options}
    constants |= {"CENTRED": centred, "ZERO_CENTRED": zero_centred}
    stored = ("y", "mean", "rstd", "z")
    with on(x):
        if plan.slices > 1:
            k, programs, planes = plan.slices, min(plan.programs, m), 3 if centred else 1
            padded = plans.next_power_of_2(k)
            moments = torch.empty((m, planes, padded), dtype=stats, device=x.device)
            # The first slice's mean is loaded once more, for others to be taken about.
            merged = k + Fraction(int(centred), planes)
            launch(
                *(_row_norm_forward_sliced_kernel, (k, programs)),
                *(*arguments[:3], moments, counters(2 * programs, x.device), *arguments[3:]),
                **constants,
                CHUNKS=plan.chunks,
                BLOCK_N=plan.block_n,
                SLICES=padded,
                AHEAD=plan.ahead,
                moves=lambda: Moves(
                    plan,
                    {"x": 1, "residual": 1, "weight": programs, "bias": m, "moments": merged},
                    (*stored, "moments"),
                    parts={"moments": k * m * planes},
                ),
            )
        elif plan.chunks:
            tiles = plans.cdiv(m, plan.block_m)
            lanes = tiles * plan.block_m  # rows, those past the last one included
            launch(
                *(_row_norm_forward_kernel, (tiles,), *arguments),
                **constants,
                CHUNKS=plan.chunks,
                BLOCK_M=plan.block_m,
                BLOCK_N=plan.block_n,
                moves=lambda: Moves(plan, {"x": 1, "residual": 1, "weight": lanes, "bias": lanes}, stored),
            )
        else:

            def moves() -> Moves:
                # The second sweep loads again what the first one did: the z that it stored, or x's partial_n columns.
                again, row = Fraction(partial_n or n, n), n * x.element_size()
                loads = {"x": 1 if z is not None else 1 + again, "residual": 1, "z": 1, "weight": m, "bias": m}
                return Moves(plan, loads, stored, again=int(again * m * row), span=tensors * row)

            grid = (min(m, plan.programs),)
            launch(_row_norm_forward_loop_kernel, grid, *arguments, n, **constants, BLOCK_N=plan.block_n, moves=moves)
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
    """Returns (dx, dw, db); dw and db (n,) in the given dtypes, None where the dtype is None, dx None unless needed.

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
    both = {"PARTIAL_N": partial_n or n, "ZERO_CENTRED": zero_centred}
    with on(x):
        if plan.rows.chunks:
            k = plan.rows.slices
            waits = k > 1
            sums_of_rows = (
                torch.empty((m, 2, plans.next_power_of_2(k)), dtype=rstd.dtype, device=x.device) if waits else None
            )
            launch(
                *(_row_norm_backward_kernel, (k, plan.programs)),
                *(dx, partials, sums_of_rows, counters(2 * plan.programs, x.device) if waits else None),
                *(*saved, weight, dz_rows, m, *strides),
                **constants,
                **both,
                **sums,
                CHUNKS=plan.rows.chunks,
                BLOCK_M=plan.rows.block_m,
                BLOCK_N=plan.rows.block_n,
                SLICES=plans.next_power_of_2(k),
                AHEAD=plan.rows.ahead,
                moves=lambda: Moves(
                    plan,
                    {"dy": 1, "x": 1, "mean": k, "rstd": k, "dz": int(need_dx), "sums": k}
                    | {"weight": plan.programs * plan.rows.block_m},
                    ("dx", "partials", "sums"),
                    parts={"sums": k * m * (2 if centred else 1)},
                ),
            )
        else:
            if need_dx:
                launch(
                    *(_row_norm_input_gradient_loop_kernel, (m,)),
                    *(dx, *saved, weight, dz_rows),
                    *(m, *strides),
                    **constants,
                    **both,
                    BLOCK_N=plan.rows.block_n,
                    moves=lambda: Moves(
                        *(plan, {"dy": 2, "x": 2, "mean": 1, "rstd": 1, "weight": 2 * m, "dz": 1}, ("dx",)),
                        again=2 * x.numel() * x.element_size(),
                        span=n * x.element_size() * (3 if dz is None else 4),
                    ),
                )
            if outputs:
                blocks = plans.cdiv(n, plan.block_columns)
                launch(
                    *(_row_norm_weight_gradient_kernel, (blocks, plan.programs)),
                    *(partials, *saved),
                    *(m, *strides[:2]),
                    **constants,
                    **sums,
                    BLOCK_M=plan.block_rows,
                    BLOCK_N=plan.block_columns,
                    moves=lambda: Moves(plan, {"dy": 1, "x": 1, "mean": blocks, "rstd": blocks}, ("partials",)),
                )
        if outputs:
            sum_partials(partials, outputs, plans.sums(plan.programs, n, device))
    return dx, dw, db
