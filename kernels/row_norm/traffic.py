"""What the launches of layer norm and RMS norm move, by plan; see traffic.py. Imports neither torch nor triton."""

from __future__ import annotations

from normlib.kernels.plan import MergePlan, cdiv
from normlib.kernels.row_norm.plan import RowBackwardPlan, RowPlan
from normlib.kernels.traffic import (
    Access,
    Sizes,
    Traffic,
    launch,
    read,
    statistics_bytes,
    sum_partials,
    updated,
    written,
)


def forward(plan: RowPlan, m: int, n: int, sizes: Sizes, partial_n: int | None = None) -> tuple[Traffic, ...]:
    """Layer or RMS norm of M rows of N columns: of x, residual, z, y, weight, bias, mean (two floats) and rstd.

    A loop's second sweep loads again what the first one did: what is normalized, x or the z that it stored, or its
    first partial_n columns.
    """
    tiles = cdiv(m, plan.block_m)
    again = 0 if plan.chunks else m * (partial_n or n)
    table = {
        "y": written(m * n),
        "mean": written(2 * m),
        "rstd": written(m),
        "x": Access(m * n + (0 if "z" in sizes else again), 0, m * n),
        "residual": read(m * n),
        "z": updated(m * n) if again else written(m * n),
        "weight": read(n, times=tiles),
        "bias": read(n, times=tiles),
    }
    if plan.chunks:
        return (launch("_row_norm_forward_kernel", (tiles,), sizes, table),)
    row = n * sizes["x"]
    span = row * sum(name in sizes for name in ("x", "y", "residual", "z"))
    grid = (min(m, plan.programs),)
    return (launch("_row_norm_forward_loop_kernel", grid, sizes, table, again=again * sizes["x"], span=span),)


def backward(plan: RowBackwardPlan, merge: MergePlan, m: int, n: int, sizes: Sizes) -> tuple[Traffic, ...]:
    """Of dx, dw, db (those that are wanted), dy, x, mean, rstd, weight and, where z had other uses, dz."""
    stats, p = statistics_bytes(sizes), plan.programs
    wanted = sum(name in sizes for name in ("dw", "db"))
    own = {**sizes, "partials": stats}
    partial_rows = {"partials": written(wanted * p * n)} if wanted else {}
    if plan.rows.chunks:
        table = {
            "dx": written(m * n),
            **partial_rows,
            "dy": read(m * n),
            "x": read(m * n),
            "mean": read(2 * m),
            "rstd": read(m),
            "weight": read(n, times=cdiv(m, plan.rows.block_m)),
            **({"dz": read(m * n)} if "dx" in sizes else {}),
        }
        first = [launch("_row_norm_backward_kernel", (p,), own, table, partials=("partials",))]
    elif plan.slices:
        k, columns = plan.slices, plan.rows.block_n
        sums = k * m * (2 if "mean" in sizes else 1)
        table = {
            "dx": written(m * n),
            **partial_rows,
            "sums": Access(sums * k, sums, sums),
            "dy": read(m * n, times=2),
            "x": read(m * n, times=2),
            "mean": read(2 * m, times=2 * k),
            "rstd": read(m, times=2 * k),
            "weight": read(n, times=p),
            "dz": read(m * n),
        }
        first = [
            launch(
                "_row_norm_backward_sliced_kernel",
                (k, p),
                {**own, "sums": stats},
                table,
                partials=("partials", "sums"),
                waits=True,
                again=2 * m * n * sizes["x"],
                # Two rounds of rows: the next one's first sweep comes before this one's second.
                span=2 * plan.block_rows * columns * sizes["x"] * (4 if "dz" in sizes else 3),
            )
        ]
    else:
        first = []
        if "dx" in sizes:
            table = {
                "dx": written(m * n),
                "dy": read(m * n, times=2),
                "x": read(m * n, times=2),
                "mean": read(2 * m),
                "rstd": read(m),
                "weight": read(n, times=2 * m),
                "dz": read(m * n),
            }
            row = n * sizes["x"]
            more = {"again": 2 * m * row, "span": row * (4 if "dz" in sizes else 3)}
            first.append(launch("_row_norm_input_gradient_loop_kernel", (m,), sizes, table, **more))
        if wanted:
            blocks = cdiv(n, plan.block_columns)
            table = {
                **partial_rows,
                "dy": read(m * n),
                "x": read(m * n),
                "mean": read(2 * m, times=blocks),
                "rstd": read(m, times=blocks),
            }
            kernel = "_row_norm_weight_gradient_kernel"
            first.append(launch(kernel, (blocks, p), own, table, partials=("partials",)))
    return (*first, *([sum_partials(merge, p, n, sizes, stats)] if wanted else []))
