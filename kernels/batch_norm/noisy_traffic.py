"""What the launches of noisy batch norm move, by plan; see traffic.py. Imports neither torch nor triton."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from normlib.kernels.batch_norm import traffic as batch_norm_traffic
from normlib.kernels.batch_norm.plan import BatchNormPlan
from normlib.kernels.plan import MergePlan
from normlib.kernels.traffic import Access, Sizes, Traffic, read, written

_SEED = 8  # bytes


def forward(plan: BatchNormPlan, merge: MergePlan, sizes: Sizes) -> tuple[Traffic, ...]:
    """Training forward: batch norm's, and of the noise four values a channel and the seed."""
    stats, between, normalize = batch_norm_traffic.forward(plan, merge, sizes)
    values = 4 * plan.channels
    drawn = _more(between, sizes, written(values))
    return stats, replace(drawn, kernel="_noisy_batch_norm_merge_kernel"), _more(normalize, sizes, _each(plan, values))


def backward(plan: BatchNormPlan, merge: MergePlan, sizes: Sizes) -> tuple[Traffic, ...]:
    """Training backward: batch norm's, whose sweeps each take two values a channel and the seed."""
    noise = _each(plan, 2 * plan.channels)
    return tuple(
        _more(one, sizes, noise) if one.sweeps else one
        for one in batch_norm_traffic.backward(plan, merge, sizes, evaluating=False)
    )


def _each(plan: BatchNormPlan, values: int) -> Access:
    """Read by every split."""
    return read(values, times=plan.splits)


def _more(one: Traffic, sizes: Sizes, noise: Access) -> Traffic:
    """The launch, whose programs each load the seed, with what it does to the noise."""
    added = {"noise": noise.of(sizes["noise"]), "seed": read(1, times=prod(one.grid)).of(_SEED)}
    return replace(one, accesses={**one.accesses, **added})
