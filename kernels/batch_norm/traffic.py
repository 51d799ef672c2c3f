"""What the launches of batch norm move, by plan; see traffic.py. Imports neither torch nor triton."""

from __future__ import annotations

from collections.abc import Mapping

from normlib.kernels.batch_norm.one_launch_plan import OncePlan
from normlib.kernels.batch_norm.plan import BatchNormPlan
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


def _sign_bytes(plan: BatchNormPlan) -> int:
    """A bit for every lane of every tile."""
    return plan.tiles * plan.groups * max(plan.block_c * plan.block_s // 8, 1)


def forward(plan: BatchNormPlan, merge: MergePlan, sizes: Sizes) -> tuple[Traffic, ...]:
    """Training forward: of x, y, mean (two floats a channel), rstd, running_mean, running_var, weight and bias.

    Of x behind a residual also that and the signs of the sum, a byte for eight.
    """
    c, splits, all_x = plan.channels, plan.splits, plan.channels * plan.count
    grid = (plan.groups, splits)
    partials = {"partials": statistics_bytes(sizes)}
    return (
        launch(
            "_batch_norm_stats_kernel",
            grid,
            {**sizes, **partials},
            {"partials": written(3 * splits * c), "x": read(all_x)},
            partials=("partials",),
            sweeps=(Sweep(("x",)),),
        ),
        launch(
            "_batch_norm_merge_kernel",
            (cdiv(c, merge.block_n),),
            {**sizes, **partials},
            {
                "mean": written(2 * c),
                "rstd": written(c),
                "running_mean": updated(c),
                "running_var": updated(c),
                "partials": read(3 * splits * c),
            },
            partials=("partials",),
        ),
        _normalize(plan, sizes, evaluating=False),
    )


def forward_once(once: OncePlan, sizes: Sizes) -> tuple[Traffic, ...]:
    """The same in one launch, on chip or off it."""
    plan = once.tiled
    c, all_x = plan.channels, plan.channels * plan.count
    table = {
        "y": written(all_x),
        "mean": written(2 * c),
        "rstd": written(c),
        "running_mean": updated(c),
        "running_var": updated(c),
        "x": read(all_x, times=1 if once.kept else 2),
        "weight": read(c, times=once.splits),
        "bias": read(c, times=once.splits),
        "residual": read(all_x),
        "signs": written(_sign_bytes(plan)),
    }
    residual = _present(sizes, "residual")
    if once.kept:
        sweeps = (Sweep(("x",)), Sweep(residual, ("y",)))
        return (_once("_batch_norm_forward_on_chip_kernel", once, sizes, table, 3, sweeps),)
    sweeps = (Sweep(("x",)), _last(plan, ("x", *residual), ("y",)))
    return (_once("_batch_norm_forward_kernel", once, sizes, table, 3, sweeps),)


def backward_once(once: OncePlan, sizes: Sizes, relu: bool = False) -> tuple[Traffic, ...]:
    """Training backward in one launch, on chip or off it; dx is wanted. `relu`: one was behind the norm."""
    plan, sweeps_of_x = once.tiled, 1 if once.kept else 2
    c, all_x, stats = plan.channels, plan.channels * plan.count, statistics_bytes(sizes)
    table = {
        "dx": written(all_x),
        "dw": written(c),
        "db": written(c),
        "dy": read(all_x, times=sweeps_of_x),
        "x": read(all_x, times=sweeps_of_x),
        "mean": read(2 * c, times=2 * once.splits),
        "rstd": read(c, times=2 * once.splits),
        "weight": read(c, times=(2 if relu else 1) * once.splits),
        "dz": written(all_x),
        "signs": read(_sign_bytes(plan), times=sweeps_of_x),
        **({"bias": read(c, times=sweeps_of_x * once.splits)} if relu and "signs" not in sizes else {}),
    }
    summed = {**sizes, "dw": stats, "db": stats}
    stored = ("dx", *_present(sizes, "dz"))
    if once.kept:
        sweeps = (Sweep(("dy", "x")), Sweep((), stored))
        return (_once("_batch_norm_backward_on_chip_kernel", once, summed, table, 2, sweeps),)
    sweeps = (Sweep(("dy", "x")), _last(plan, ("dy", "x"), stored))
    return (_once("_batch_norm_backward_kernel", once, summed, table, 2, sweeps),)


def _once(
    kernel: str,
    once: OncePlan,
    sizes: Sizes,
    table: Mapping[str, Access],
    planes: int,
    sweeps: tuple[Sweep, ...],
) -> Traffic:
    """A pass that is one launch: where a channel has several splits, each stores its partials and loads everyone's."""
    elements = planes * once.splits * once.tiled.channels
    partials = {"partials": Access(elements * once.splits, elements, elements)} if once.splits > 1 else {}
    return launch(
        kernel,
        (once.windows, once.splits),
        {**sizes, "partials": statistics_bytes(sizes)},
        {**table, **partials},
        partials=("partials",),
        sweeps=sweeps,
        ahead=once.ahead,
        waits=once.splits > 1,
    )


def eval_forward(plan: BatchNormPlan, sizes: Sizes) -> tuple[Traffic, ...]:
    """Evaluation: of x, y, running_mean, running_var, weight and bias."""
    return (_normalize(plan, _evaluating(sizes), evaluating=True),)


def backward(
    plan: BatchNormPlan, merge: MergePlan, sizes: Sizes, evaluating: bool, relu: bool = False
) -> tuple[Traffic, ...]:
    """Of dx, dw, db (those that are wanted), dy, x, weight, and mean and rstd or running_mean and running_var.

    `relu`: one was behind the norm; then also of the bias or, behind a residual, of its gradient dz and the signs.
    """
    if evaluating:
        sizes = _evaluating(sizes)
    splits, all_x = plan.splits, plan.channels * plan.count
    # In training dx needs the sums, whoever else wants them.
    sums = {"dw", "db"} <= sizes.keys() or ("dx" in sizes and not evaluating)
    stats = statistics_bytes(sizes)
    partials = {"partials": stats} if sums else {}
    summed = {**sizes, "dw": stats, "db": stats}
    grid, channel, finds_dx = (plan.groups, splits), _channel_vectors(plan, evaluating), evaluating and "dx" in sizes
    if relu and "signs" not in sizes:
        channel["bias"] = read(plan.channels, times=splits)
    channel["signs"] = read(_sign_bytes(plan))
    stored = {"dx": written(all_x), "dz": written(all_x)}
    asks_x = sums or (relu and "signs" not in sizes)
    # The residual's gradient goes with dx, or alone where no dx is wanted.
    last = finds_dx or "dx" not in sizes
    launches = []
    if sums or finds_dx or "dz" in sizes:
        launches.append(
            launch(
                "_batch_norm_reduce_kernel",
                grid,
                {**sizes, **partials},
                {
                    "partials": written(2 * splits * plan.channels),
                    **(stored if last else {}),
                    "dy": read(all_x),
                    **({"x": read(all_x)} if asks_x else {}),
                    **channel,
                },
                partials=("partials",),
                sweeps=(Sweep(("dy", "x") if asks_x else ("dy",), _present(sizes, "dx", "dz") if last else ()),),
            )
        )
    if sums:
        launches.append(sum_partials(merge, splits, plan.channels, summed, stats))
    if "dx" in sizes and not evaluating:
        each = read(plan.channels, times=splits)
        table = {**stored, "dy": read(all_x), "x": read(all_x), **channel, "dw": each, "db": each}
        sweep = _last(plan, ("dy", "x"), _present(sizes, "dx", "dz"))
        launches.append(launch("_batch_norm_input_gradient_kernel", grid, summed, table, sweeps=(sweep,)))
    return tuple(launches)


def _last(plan: BatchNormPlan, loads: tuple[str, ...], stores: tuple[str, ...], only: bool = False) -> Sweep:
    """A pass's last sweep, or its only one."""
    return Sweep(loads, stores, backwards=True, evicts=bool(plan.evict) and not only)


def _present(sizes: Sizes, *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if name in sizes)


def _evaluating(sizes: Sizes) -> Sizes:
    """In evaluation the kernels' mean and rstd are the running mean and variance."""
    return {**sizes, "mean": sizes["running_mean"], "rstd": sizes["running_var"]}


def _channel_vectors(plan: BatchNormPlan, evaluating: bool) -> dict[str, Access]:
    """What every split loads of its channels before it sweeps."""
    c, splits = plan.channels, plan.splits
    mean = read(c if evaluating else 2 * c, times=splits)
    return {"mean": mean, "rstd": read(c, times=splits), "weight": read(c, times=splits)}


def _normalize(plan: BatchNormPlan, sizes: Sizes, evaluating: bool) -> Traffic:
    all_x = plan.channels * plan.count
    return launch(
        "_batch_norm_normalize_kernel",
        (plan.groups, plan.splits),
        sizes,
        {
            "y": written(all_x),
            "x": read(all_x),
            **_channel_vectors(plan, evaluating),
            "bias": read(plan.channels, times=plan.splits),
            "residual": read(all_x),
            "signs": written(_sign_bytes(plan)),
        },
        sweeps=(_last(plan, ("x", *_present(sizes, "residual")), ("y",), only=evaluating),),
    )
