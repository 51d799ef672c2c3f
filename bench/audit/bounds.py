"""The lower bound of batch norm's device traffic with a cache of a given size, and why a plan moves more than that."""

from __future__ import annotations

from collections.abc import Sequence

from normlib.kernels.batch_norm.plan import BatchNormPlan
from normlib.kernels.group_norm.plan import GroupNormPlan
from normlib.kernels.traffic import TileSweep

# Bytes that a cache loads at least: on NVIDIA a quarter of a line of 128 (Nsight Compute, Memory Tables), on AMD more.
SECTOR = 32
# Above what everything takes once, a plan owes a reason: 2.2 units in place of 2, 3.3 in place of 3.
CLOSE = 1.1


def once_units(sweeps: Sequence[TileSweep]) -> int:
    """Returns the units with every activation loaded once and stored once, as with an unlimited cache."""
    return len({name for sweep in sweeps for name in sweep.loads}) + sum(len(sweep.stores) for sweep in sweeps)


def least_units(
    plan: BatchNormPlan | GroupNormPlan, sweeps: Sequence[TileSweep], itemsize: int, cache_bytes: int
) -> float:
    """Returns the lower bound, in units, of any plan that keeps activations only in this cache.

    A channel's (or group's) statistics want all of its sectors before any of them may be swept again. So what both
    sweeps load of a sector's channels waits at once, and what of it outgrows the cache comes twice.
    """
    once = once_units(sweeps)
    again = sum(len(sweep.loads) + len(sweep.stores) for sweep in sweeps) - once
    together, count = (plan.per_group, plan.positions) if isinstance(plan, GroupNormPlan) else (1, plan.count)
    sector = max(SECTOR // itemsize, 1) if plan.channels_last else 1
    waiting = again * min(max(sector, together), plan.channels) * count * itemsize
    return once + again * max(1 - cache_bytes / waiting, 0.0) if waiting else once


def reason(plan: BatchNormPlan | GroupNormPlan, units: float, least: float) -> str:
    """Returns why a plan moves `units`, more than every activation once."""
    if units <= 1.01 * least:
        return "no plan does better with this cache: whole sectors of a channel outgrow it"
    if isinstance(plan, GroupNormPlan):
        return "the groups that are swept at a time outgrow the cache together"
    return "all of a tensor is swept once before any of it is swept again, and it outgrows the cache"
