"""What the launches of batch renormalization move, by plan; see traffic.py. Imports neither torch nor triton."""

from __future__ import annotations

from normlib.kernels.batch_norm import traffic as batch_norm_traffic
from normlib.kernels.batch_norm.one_launch_plan import OncePlan
from normlib.kernels.batch_norm.plan import BatchNormPlan
from normlib.kernels.plan import MergePlan, cdiv
from normlib.kernels.traffic import Sizes, Traffic, launch, read, statistics_bytes, updated, written


def forward(plan: BatchNormPlan, merge: MergePlan, sizes: Sizes) -> tuple[Traffic, ...]:
    """Training forward: of what batch norm's has, with running_std for running_var, and renorm, four floats a channel.

    The second sweep's weight and bias are two of those four.
    """
    c, stats = plan.channels, statistics_bytes(sizes)
    moments, _, normalize = batch_norm_traffic.forward(plan, merge, {**sizes, "weight": stats, "bias": stats})
    between = launch(
        "_batch_renorm_merge_kernel",
        (cdiv(c, merge.block_n),),
        {**sizes, "partials": stats},
        {
            "mean": written(2 * c),
            "rstd": written(c),
            "renorm": written(4 * c),
            "running_mean": updated(c),
            "running_std": updated(c),
            "partials": read(3 * plan.splits * c),
            "weight": read(c),
            "bias": read(c),
        },
        partials=("partials",),
    )
    return moments, between, normalize


def backward(
    plan: BatchNormPlan, once: OncePlan | None, merge: MergePlan, columns: MergePlan, sizes: Sizes
) -> tuple[Traffic, ...]:
    """Training backward: batch norm's, and where dw is wanted r and d put into it by the plan `columns`."""
    stats = statistics_bytes(sizes)
    as_batch_norm = {**sizes, "weight": stats}
    if once is not None:
        launches = batch_norm_traffic.backward_once(once, as_batch_norm)
    else:
        launches = batch_norm_traffic.backward(plan, merge, as_batch_norm, evaluating=False)
    if "dw" not in sizes:
        return launches
    c = plan.channels
    last = launch(
        "_batch_renorm_weight_gradient_kernel",
        (cdiv(c, columns.block_n),),
        {**sizes, "dw": stats, "db": stats},
        {"dw": updated(c), "db": read(c), "renorm": read(2 * c)},
    )
    return *launches, last


def evaluation(plan: BatchNormPlan, merge: MergePlan, sizes: Sizes, backward: bool) -> tuple[Traffic, ...]:
    """Either way in evaluation: batch norm's, with running_std for running_var."""
    as_batch_norm = {**sizes, "running_var": sizes["running_std"]}
    if backward:
        return batch_norm_traffic.backward(plan, merge, as_batch_norm, evaluating=True)
    return batch_norm_traffic.eval_forward(plan, as_batch_norm)
