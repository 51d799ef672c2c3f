"""How the kernels of batch norm's plans are launched: the arguments that all of one grid take follow from the plan."""

from typing import Any

import torch
from torch import Tensor

from normlib.kernels import plan as plans
from normlib.kernels.batch_norm import plan as batch_norm_plan
from normlib.kernels.batch_norm.one_launch_plan import OncePlan
from normlib.kernels.batch_norm.plan import BatchNormPlan
from normlib.kernels.counters import counters
from normlib.kernels.host import dense, device_of
from normlib.kernels.numerics import float_pair, statistics_dtype
from normlib.kernels.plan import Device


def planned(x: Tensor, device: Device | None) -> tuple[Tensor, Device, BatchNormPlan]:
    """(x (N, C, *) in one of the two layouts, its device unless one is given, batch norm's plan of it)."""
    x, last = dense(x)
    device = device or device_of(x)
    return x, device, batch_norm_plan.batch_norm(tuple(x.shape), last, x.element_size(), device)


def empty_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Where a forward pass of x (N, C, *) leaves its (mean (2, C): mean, low; rstd (C,))."""
    channels, stats = x.shape[1], statistics_dtype(x)
    return x.new_empty((2, channels), dtype=stats), x.new_empty(channels, dtype=stats)


def launch(
    kernel: Any, plan: BatchNormPlan, *tensors: Tensor | None, scalars: tuple[float, ...] = (), **constants: Any
) -> None:
    """A sweep over all tiles: a program for each split of each channel group."""
    kernel[(plan.groups, plan.splits)](
        *tensors,
        plan.channels,
        plan.positions,
        plan.tiles,
        plan.splits,
        *_pairs(scalars),
        LAST=plan.channels_last,
        ALIGN=plan.align,
        BLOCK_C=plan.block_c,
        BLOCK_S=plan.block_s,
        **plan.options,
        **constants,
    )


def launch_merge(
    kernel: Any,
    plan: BatchNormPlan,
    device: Device,
    *tensors: Tensor | None,
    scalars: tuple[float, ...],
    **constants: Any,
) -> None:
    """What comes between two sweeps: the partial results of all splits, merged a few channels a program.

    Each of the scalars reaches the kernel as a pair of floats.
    """
    merge = plans.merge(plan.splits, plan.channels, device)
    kernel[(plans.cdiv(plan.channels, merge.block_n),)](
        *tensors,
        plan.channels,
        plan.positions,
        plan.tiles,
        plan.splits,
        *_pairs(scalars),
        plan.block_s,
        BLOCK_P=merge.block_p,
        BLOCK_N=merge.block_n,
        **merge.options,
        **constants,
    )


def _pairs(scalars: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(part for scalar in scalars for part in float_pair(scalar))


def launch_once(
    kernel: Any,
    once: OncePlan,
    outputs: tuple[Tensor, *tuple[Tensor | None, ...]],
    planes: int,
    inputs: tuple[Tensor | None, ...],
    scalars: tuple[float, ...] = (),
    **constants: Any,
) -> None:
    """One launch for all of a pass, with the partials and the counters that its barriers need."""
    partials = arrived = None
    plan = once.tiled
    if once.splits > 1:
        (like, *_) = outputs
        partials = torch.empty((planes, once.splits, plan.channels), dtype=statistics_dtype(like), device=like.device)
        arrived = counters(2 * plan.groups, like.device)
    kernel[(once.windows, once.splits)](
        *outputs,
        partials,
        arrived,
        *inputs,
        plan.channels,
        plan.positions,
        plan.tiles,
        once.splits,
        *(() if once.kept else (once.ahead * once.windows,)),
        *_pairs(scalars),
        LAST=plan.channels_last,
        ALIGN=plan.align,
        BLOCK_C=plan.block_c,
        BLOCK_S=plan.block_s,
        BLOCK_P=once.block_p,
        **({"KEPT": once.kept} if once.kept else {"EVICT": plan.evict}),
        **once.options,
        **constants,
    )
