"""What the launches of group norm and instance norm move, by plan; see traffic.py. Imports neither torch nor triton."""

from __future__ import annotations

from normlib.kernels.group_norm.plan import GroupNormPlan
from normlib.kernels.plan import MergePlan, cdiv
from normlib.kernels.traffic import (
    Access,
    Sizes,
    Sweep,
    Traffic,
    launch,
    read,
    statistics_bytes,
    sum_partials,
    updated,
    written,
)


def forward(plan: GroupNormPlan, sizes: Sizes) -> tuple[Traffic, ...]:
    """Of x, y, mean (two floats a group), rstd, weight, bias and, where somebody asks for it, var."""
    all_x, m, grid = plan.channels * plan.count, plan.statistics, (plan.groups, plan.splits)
    kept = {"mean": written(2 * m), "rstd": written(m), "var": written(m)}
    affine = {name: read(plan.channels, times=plan.parts) for name in ("weight", "bias")}
    if plan.rows:
        table = {"y": written(all_x), "x": read(all_x, times=2), **kept, **affine}
        return (launch("_group_norm_forward_kernel", grid, sizes, table, sweeps=(Sweep(("x",)), _last(plan))),)
    partials = {"partials": statistics_bytes(sizes)}
    moments = 3 * plan.parts * plan.channels
    return (
        launch(
            "_group_norm_stats_kernel",
            grid,
            {**sizes, **partials},
            {"partials": written(moments), "x": read(all_x)},
            partials=("partials",),
            sweeps=(Sweep(("x",)),),
        ),
        launch(
            "_group_norm_merge_kernel",
            (plan.merges,),
            {**sizes, **partials},
            {**kept, "partials": read(moments)},
            partials=("partials",),
        ),
        launch(
            "_group_norm_normalize_kernel",
            grid,
            sizes,
            {"y": written(all_x), "x": read(all_x), **_statistics(plan), **affine},
            sweeps=(_last(plan),),
        ),
    )


def running(merge: MergePlan, images: int, channels: int, sizes: Sizes) -> Traffic:
    """The launch that moves an instance norm's running statistics."""
    return launch(
        "_instance_norm_running_kernel",
        (cdiv(channels, merge.block_n),),
        sizes,
        {
            "running_mean": updated(channels),
            "running_var": updated(channels),
            "mean": read(2 * images * channels),
            "var": read(images * channels),
        },
    )


def backward(plan: GroupNormPlan, merge: MergePlan, sizes: Sizes) -> tuple[Traffic, ...]:
    """Of dx, dw, db (those that are wanted), dy, x, mean, rstd and weight; `merge` is of the partial dw and db."""
    all_x, stats, c = plan.channels * plan.count, statistics_bytes(sizes), plan.channels
    wanted, alone = bool({"dw", "db"} & sizes.keys()), bool(plan.rows) and "dx" in sizes
    grid, parts = (plan.groups, plan.splits), plan.parts
    own = {**sizes, "partials": stats, "coefficients": stats}
    swept = {"dy": read(all_x), "x": read(all_x), **_statistics(plan)}
    weight = {"weight": read(c, times=parts)}
    sums = [sum_partials(merge, parts, c, sizes, stats)] if wanted else []
    first = Sweep(("dy", "x"))
    if alone:
        table = {
            "dx": written(all_x),
            **({"partials": written(2 * parts * c)} if wanted else {}),
            **swept,
            "dy": read(all_x, times=2),
            "x": read(all_x, times=2),
            **weight,
        }
        sweeps = (first, _last(plan, ("dy", "x"), "dx"))
        return (launch("_group_norm_backward_kernel", grid, own, table, partials=("partials",), sweeps=sweeps), *sums)
    if not wanted and "dx" not in sizes:
        return ()
    launches = [
        launch(
            "_group_norm_reduce_kernel",
            grid,
            own,
            {"partials": written(2 * parts * c), **swept},
            partials=("partials",),
            sweeps=(first,),
        ),
        *sums,
    ]
    if "dx" in sizes:
        m = plan.statistics
        launches += [
            launch(
                "_group_norm_coefficients_kernel",
                (plan.merges,),
                own,
                {"coefficients": written(2 * m), "partials": read(2 * parts * c), **weight},
                partials=("partials", "coefficients"),
            ),
            launch(
                "_group_norm_input_gradient_kernel",
                grid,
                own,
                {"dx": written(all_x), **swept, "coefficients": Access(2 * parts * c, 0, 2 * m), **weight},
                partials=("coefficients",),
                sweeps=(_last(plan, ("dy", "x"), "dx"),),
            ),
        ]
    return tuple(launches)


def _statistics(plan: GroupNormPlan) -> dict[str, Access]:
    """What every part loads of its channels' groups before it sweeps."""
    loads = plan.parts * plan.channels
    return {"mean": Access(2 * loads, 0, 2 * plan.statistics), "rstd": Access(loads, 0, plan.statistics)}


def _last(plan: GroupNormPlan, loads: tuple[str, ...] = ("x",), store: str = "y") -> Sweep:
    return Sweep(loads, (store,), backwards=True, evicts=bool(plan.evict))
