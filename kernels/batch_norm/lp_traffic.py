"""What the launches of l_p normalization move: batch norm's, but for its own three; see traffic.py."""

from __future__ import annotations

from normlib.kernels.batch_norm import traffic as batch_norm_traffic
from normlib.kernels.batch_norm.plan import BatchNormPlan
from normlib.kernels.batch_norm.traffic import _last, _normalize
from normlib.kernels.plan import MergePlan, cdiv
from normlib.kernels.traffic import Sizes, Sweep, Traffic, launch, read, statistics_bytes, updated, written


def forward(plan: BatchNormPlan, merge: MergePlan, sizes: Sizes) -> tuple[Traffic, ...]:
    """Training forward: of x, y, mean (two floats a channel), rstd, running_mean, running_norm, weight and bias.

    And of the peak, two floats a channel, where p is inf.
    """
    c, all_x = plan.channels, plan.channels * plan.count
    results = (4 if "peak" in sizes else 3) * plan.splits * c
    partials = {"partials": statistics_bytes(sizes)}
    return (
        launch(
            "_lp_norm_stats_kernel",
            (plan.groups, plan.splits),
            {**sizes, **partials},
            {"partials": written(results), "x": read(all_x)},
            partials=("partials",),
            sweeps=(Sweep(("x",)),),
        ),
        launch(
            "_lp_norm_merge_kernel",
            (cdiv(c, merge.block_n),),
            {**sizes, **partials},
            {
                "mean": written(2 * c),
                "rstd": written(c),
                "peak": written(2 * c),
                "running_mean": updated(c),
                "running_norm": updated(c),
                "partials": read(results),
            },
            partials=("partials",),
        ),
        _normalize(plan, sizes, evaluating=False),
    )


def eval_forward(plan: BatchNormPlan, sizes: Sizes) -> tuple[Traffic, ...]:
    """Evaluation: of x, y, running_mean, running_norm, weight and bias."""
    return batch_norm_traffic.eval_forward(plan, _as_variance(sizes))


def backward(plan: BatchNormPlan, merge: MergePlan, sizes: Sizes, evaluating: bool) -> tuple[Traffic, ...]:
    """Of dx, dw, db (those that are wanted), dy, x, weight, mean, rstd and peak or running_mean and running_norm."""
    launches = batch_norm_traffic.backward(plan, merge, _as_variance(sizes), evaluating)
    if evaluating or "dx" not in sizes:
        return launches
    all_x, stats = plan.channels * plan.count, statistics_bytes(sizes)
    each = read(plan.channels, times=plan.splits)
    last = launch(
        "_lp_norm_input_gradient_kernel",
        (plan.groups, plan.splits),
        {**sizes, "dw": stats, "db": stats},
        {
            "dx": written(all_x),
            "dy": read(all_x),
            "x": read(all_x),
            "peak": read(2 * plan.channels, times=plan.splits),
            **dict.fromkeys(("rstd", "weight", "dw", "db"), each),
        },
        sweeps=(_last(plan, ("dy", "x"), ("dx",)),),
    )
    return (*launches[:-1], last)


def _as_variance(sizes: Sizes) -> Sizes:
    """With the running norm where batch norm has its running variance."""
    return {"running_var" if name == "running_norm" else name: size for name, size in sizes.items()}
