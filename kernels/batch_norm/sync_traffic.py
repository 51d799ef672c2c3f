"""What the launches of synchronized batch norm move in one process, by plan; see traffic.py.

What goes from process to process between them is no launch, and does not stand here. Imports neither torch nor triton.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from normlib.kernels.batch_norm import traffic as batch_norm_traffic
from normlib.kernels.batch_norm.plan import BatchNormPlan
from normlib.kernels.plan import MergePlan, cdiv
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


def forward(
    plan: BatchNormPlan, merge: MergePlan, ranks: int, merge_ranks: MergePlan, sizes: Sizes
) -> tuple[Traffic, ...]:
    """Batch norm's two sweeps, and between them this process's message, 3 C + 2, and the merge of every process's."""
    moments, _, normalize = batch_norm_traffic.forward(plan, merge, sizes)
    c, stats, programs = plan.channels, statistics_bytes(sizes), cdiv(plan.channels, merge_ranks.block_n)
    message = launch(
        "_sync_batch_norm_message_kernel",
        (cdiv(c, merge.block_n),),
        {"message": stats, "partials": stats},
        {"message": written(3 * c + 2), "partials": read(3 * plan.splits * c)},
        partials=("message", "partials"),
    )
    merged = launch(
        "_sync_batch_norm_merge_kernel",
        (programs,),
        {**sizes, "messages": stats, "count": stats},
        {
            "mean": written(2 * c),
            "rstd": written(c),
            "count": written(1),
            "running_mean": updated(c),
            "running_var": updated(c),
            # Every program loads the counts, which are pairs.
            "messages": Access(ranks * (3 * c + 2 * programs), 0, ranks * (3 * c + 2)),
        },
        partials=("messages",),
    )
    return moments, message, merged, normalize


def backward(
    plan: BatchNormPlan, merge: MergePlan, ranks: int, merge_ranks: MergePlan, sizes: Sizes
) -> tuple[Traffic, ...]:
    """The sums of this process's share, which are its message, and where dx is wanted those of all processes and dx."""
    stats = statistics_bytes(sizes)
    summed = {**sizes, "dw": stats, "db": stats}
    own = {name: size for name, size in summed.items() if name not in ("dx", "weight")}
    launches = batch_norm_traffic.backward(plan, merge, own, evaluating=False)
    if "dx" not in sizes:
        return launches
    *_, gradient = batch_norm_traffic.backward(plan, merge, summed, evaluating=False)
    count = read(1, times=prod(gradient.grid)).of(stats)
    return (
        *launches,
        sum_partials(merge_ranks, ranks, 2 * plan.channels, {"dw": stats}, stats),
        replace(gradient, accesses={**gradient.accesses, "count": count}),
    )
