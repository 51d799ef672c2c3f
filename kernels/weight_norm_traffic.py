"""What the launches of weight normalization move, by plan; see traffic.py. Imports neither torch nor triton."""

from __future__ import annotations

from normlib.kernels.plan import cdiv
from normlib.kernels.row_norm.plan import RowPlan
from normlib.kernels.traffic import Sizes, Traffic, launch, read, written


def forward(plan: RowPlan, m: int, n: int, sizes: Sizes) -> tuple[Traffic, ...]:
    """M rows of N columns: of y, norm (two floats), x and weight."""
    table = {"y": written(m * n), "norm": written(2 * m), "x": read(m * n), "weight": read(m)}
    if plan.chunks:
        return (launch("_weight_norm_forward_kernel", (cdiv(m, plan.block_m),), sizes, table),)
    table["x"] = read(m * n, times=2)
    row = n * sizes["x"]
    return (launch("_weight_norm_forward_loop_kernel", (m,), sizes, table, again=m * row, span=2 * row),)


def backward(plan: RowPlan, m: int, n: int, sizes: Sizes) -> tuple[Traffic, ...]:
    """Of dx and dw (those that are wanted), dy, x, norm and weight, which dx alone takes."""
    wanted = "dx" in sizes
    again = wanted and not plan.chunks
    table = {
        "dx": written(m * n),
        "dw": written(m),
        "dy": read(m * n, times=1 + again),
        "x": read(m * n, times=1 + again),
        "norm": read(2 * m),
        **({"weight": read(m)} if wanted else {}),
    }
    if plan.chunks:
        return (launch("_weight_norm_backward_kernel", (cdiv(m, plan.block_m),), sizes, table),)
    row = n * sizes["x"]
    more = {"again": 2 * m * row, "span": 3 * row} if again else {}
    return (launch("_weight_norm_backward_loop_kernel", (m,), sizes, table, **more),)
