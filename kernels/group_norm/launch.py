"""Group normalization of (N, C, *), contiguous or channels-last; instance.py is that with a channel a group.

Forward (Wu and He 2018, equations 1 and 2), over the n = C / G * prod(*) elements of each of an image's G groups:

    mean  = sum(x) / n              var = sum((x - mean)^2) / n              rstd = 1 / sqrt(var + eps)
    x_hat = (x - mean) rstd         y   = x_hat weight + bias, which each channel has its own of

Backward, with a channel's sums over its positions in one image, and c1, c2 over a group's channels:

    sum(dy x_hat), sum(dy)          c1 = sum(weight sum(dy x_hat)) / n       c2 = sum(weight sum(dy)) / n
    dx = rstd (weight dy - x_hat c1 - c2)
    dw = sum over images of sum(dy x_hat)          db = sum over images of sum(dy)

An image is swept as batch norm's channels are (batch_norm/tiles.py), a row of a tile each, and what is a channel's
becomes a group's by merging rows (rows.py). Two plans (plan.py):

one launch    a program has all channels of a group, or of several groups, and sweeps them twice, the second time
              backwards so that it meets the cache. Backward leaves a row of sums an image, which are then added.
streaming     few large groups, and channels-last all that are no power of two: an image's channels are split over
              programs, which leave partial moments (or sums) of each; a merge over a group's channels and splits in a
              fixed order; one sweep that applies the result.

Units of one activation moved: forward 3, backward 5, and 2 and 3 where the second sweep finds the first one's in cache.
Saved for backward: x, the mean as a pair of floats, rstd.

This file has the launchers. The kernels are in one_launch.py and streaming.py.
"""

import torch
from torch import Tensor

from normlib.kernels import plan as plans
from normlib.kernels.group_norm import plan as group_norm_plan
from normlib.kernels.group_norm.one_launch import _group_norm_backward_kernel, _group_norm_forward_kernel
from normlib.kernels.group_norm.streaming import (
    _group_norm_coefficients_kernel,
    _group_norm_input_gradient_kernel,
    _group_norm_merge_kernel,
    _group_norm_normalize_kernel,
    _group_norm_reduce_kernel,
    _group_norm_stats_kernel,
)
from normlib.kernels.host import dense, device_of, float_pair, like, on, statistics_dtype
from normlib.kernels.plan import Device
from normlib.kernels.reduction import sum_partials
from normlib.kernels.traffic import Moves, TileSweep, launch


def _tiling(plan: group_norm_plan.GroupNormPlan) -> dict[str, object]:
    return {
        "LAST": plan.channels_last,
        "ALIGN": plan.align,
        "BLOCK_C": plan.block_c,
        "BLOCK_S": plan.block_s,
        "STAGES": plan.stages,
        **plan.options,
    }


def _loads(plan: group_norm_plan.GroupNormPlan, swept: str = "") -> dict[str, int]:
    """Returns how often a sweep loads its activations, once, and what each part needs of its channels' groups."""
    of_groups = dict.fromkeys(("mean", "rstd", "coefficients"), plan.splits * plan.per_group)
    return {**dict.fromkeys(swept.split(), 1), **of_groups, "weight": plan.parts, "bias": plan.parts}


def _last(plan: group_norm_plan.GroupNormPlan, loads: str, store: str) -> TileSweep:
    return TileSweep(tuple(loads.split()), (store,), backwards=True, evicts=bool(plan.evict))


def group_norm_forward(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    device: Device | None = None,
    var: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (y, mean (2, N * groups), rstd (N * groups,)) of x (N, C, *); var, if given, gets biased variances."""
    x, last = dense(x)
    device = device or device_of(x)
    plan = group_norm_plan.group_norm(tuple(x.shape), groups, last, x.element_size(), device)
    y = torch.empty_like(x)
    mean = torch.empty((2, plan.statistics), dtype=statistics_dtype(x), device=x.device)
    rstd = torch.empty(plan.statistics, dtype=mean.dtype, device=x.device)
    if x.numel() == 0:
        return y, mean.zero_(), rstd.zero_()
    saved, sizes = (mean, rstd, var), (plan.channels, plan.positions, plan.per_group)
    grid = (plan.groups, plan.splits)
    with on(x):
        if plan.rows:
            launch(
                *(_group_norm_forward_kernel, grid),
                *(y, *saved, x, weight, bias, plan.statistics, *sizes, *float_pair(eps)),
                ROWS=plan.rows,
                EVICT=plan.evict,
                **_tiling(plan),
                moves=lambda: Moves(
                    *(plan, {"x": 2, "weight": plan.parts, "bias": plan.parts}, ("y", "mean", "rstd", "var")),
                    sweeps=(TileSweep(("x",)), _last(plan, "x", "y")),
                ),
            )
            return y, mean, rstd
        partials = torch.empty((3, plan.parts, plan.channels), dtype=mean.dtype, device=x.device)
        launch(
            *(_group_norm_stats_kernel, grid, partials, x, plan.batch, *sizes[:2], plan.splits),
            **_tiling(plan),
            moves=lambda: Moves(plan, {"x": 1}, ("partials",), sweeps=(TileSweep(("x",)),)),
        )
        launch(
            *(_group_norm_merge_kernel, (plan.merges,)),
            *(*saved, partials, plan.statistics, plan.batch, *sizes, plan.splits, *float_pair(eps), plan.block_s),
            BLOCK_G=group_norm_plan.MERGED_GROUPS,
            BLOCK_P=group_norm_plan.MERGED_PARTS,
            **plan.options,
            moves=lambda: Moves(plan, {"partials": 1}, ("mean", "rstd", "var")),
        )
        launch(
            *(_group_norm_normalize_kernel, grid),
            *(y, x, mean, rstd, weight, bias, plan.statistics, *sizes, plan.splits),
            EVICT=plan.evict,
            **_tiling(plan),
            moves=lambda: Moves(plan, _loads(plan, "x"), ("y",), sweeps=(_last(plan, "x", "y"),)),
        )
    return y, mean, rstd


def group_norm_backward(
    dy: Tensor,
    x: Tensor,
    groups: int,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    dw_dtype: torch.dtype | None,
    db_dtype: torch.dtype | None,
    need_dx: bool,
    device: Device | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns (dx, dw, db); dw and db (C,) in the given dtypes, None where the dtype is None, dx None unless needed.

    mean and rstd are as saved by the forward pass.
    """
    x, last = dense(x)
    dy = like(x, dy)
    device = device or device_of(x)
    plan = group_norm_plan.group_norm(tuple(x.shape), groups, last, x.element_size(), device)
    dx = torch.empty_like(x) if need_dx else None
    dw, db = (None if t is None else torch.empty(plan.channels, dtype=t, device=x.device) for t in (dw_dtype, db_dtype))
    if x.numel() == 0:
        return dx, None if dw is None else dw.zero_(), None if db is None else db.zero_()
    kept = [(t, i) for i, t in enumerate((dw, db)) if t is not None]
    alone = bool(plan.rows) and need_dx
    partials = None
    if kept or not alone:
        partials = torch.empty((2, plan.parts, plan.channels), dtype=rstd.dtype, device=x.device)
    sizes, grid = (plan.channels, plan.positions, plan.per_group), (plan.groups, plan.splits)
    with on(x):
        if alone:
            launch(
                *(_group_norm_backward_kernel, grid),
                *(dx, partials, dy, x, mean, rstd, weight, plan.statistics, plan.batch, *sizes),
                ROWS=plan.rows,
                EVICT=plan.evict,
                **_tiling(plan),
                moves=lambda: Moves(
                    *(plan, _loads(plan) | {"dy": 2, "x": 2}, ("dx", "partials")),
                    sweeps=(TileSweep(("dy", "x")), _last(plan, "dy x", "dx")),
                ),
            )
        elif need_dx or kept:
            launch(
                *(_group_norm_reduce_kernel, grid),
                *(partials, dy, x, mean, rstd, plan.statistics, plan.batch, *sizes, plan.splits),
                **_tiling(plan),
                moves=lambda: Moves(plan, _loads(plan, "dy x"), ("partials",), sweeps=(TileSweep(("dy", "x")),)),
            )
        if partials is not None and kept:
            sums = partials[kept[0][1] : kept[-1][1] + 1]
            sum_partials(sums, tuple(t for t, _ in kept), plans.merge(plan.parts, plan.channels, device))
        if need_dx and not alone:
            coefficients = torch.empty((2, plan.statistics), dtype=rstd.dtype, device=x.device)
            launch(
                *(_group_norm_coefficients_kernel, (plan.merges,)),
                *(coefficients, partials, weight, plan.statistics, plan.batch, *sizes, plan.splits),
                BLOCK_G=group_norm_plan.MERGED_GROUPS,
                BLOCK_P=group_norm_plan.MERGED_PARTS,
                **plan.options,
                moves=lambda: Moves(plan, {"partials": 1, "weight": plan.parts}, ("coefficients",)),
            )
            launch(
                *(_group_norm_input_gradient_kernel, grid),
                *(dx, dy, x, mean, rstd, coefficients, weight, plan.statistics, *sizes, plan.splits),
                EVICT=plan.evict,
                **_tiling(plan),
                moves=lambda: Moves(*(plan, _loads(plan, "dy x"), ("dx",)), sweeps=(_last(plan, "dy x", "dx"),)),
            )
    return dx, dw, db
