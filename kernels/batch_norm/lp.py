"""Normalization of (N, C, *) by the average l_p norm of what has not been centred, contiguous or channels-last.

Santurkar et al., "How does batch normalization help optimization?" (2018, arXiv 1805.11604), section 3.3: batch norm
with another divisor. Over the n = N * prod(*) elements of a channel, for p = 1, 2, inf:

    mean  = sum(x) / n                        running_mean <- (1 - momentum) running_mean + momentum mean
    norm  = (sum(|x|^p) / n)^(1/p), max |x|   running_norm <- (1 - momentum) running_norm + momentum norm
    sigma = norm + sqrt(eps),  sqrt(norm^2 + eps),  max(norm, sqrt(eps))
    rstd  = 1 / sigma
    x_hat = (x - mean) rstd
    y     = x_hat weight + bias

sigma is the l_p norm of the pair (norm, sqrt(eps)). So p = 2 is batch norm where the mean is 0, with batch norm's eps;
and a channel of zeros is divided by sqrt(eps) whatever p is, by 0.003 and not by 0.00001.

Backward in training, and in evaluation, where mean and rstd are constants:

    db = sum(dy)       dw = sum(dy x_hat)
    dx = weight rstd (dy - db / n - dw dsigma/dx)            dx = weight rstd dy
    dsigma/dx = sign(x) / n,  x rstd / n,  sign(x) / ties where |x| is the maximum and above sqrt(eps), else 0

where `ties` elements of a channel share the maximum and its derivative, as in torch.amax.

No statistic is a difference of large sums, but the mean is subtracted, and kept as a pair of floats. The plan is batch
norm's, forward with a launch more, in which partial results are merged. The sweeps that normalize and that sum the
gradients are batch norm's own. Units of one activation moved: training forward 3, backward 5, evaluation 2 and 3. Saved
for backward: x, the mean as a pair, rstd, and for p = inf the maximum and its ties.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from normlib.kernels.batch_norm.gradients import add_splits
from normlib.kernels.batch_norm.output import scale_of
from normlib.kernels.batch_norm.statistics import merge_splits
from normlib.kernels.batch_norm.streaming import _batch_norm_reduce_kernel
from normlib.kernels.batch_norm.sweeps import (
    INPUT_GRADIENT,
    SUMS,
    SUMS_WITHOUT_X,
    empty_statistics,
    launch_merge,
    launch_sweep,
    normalize,
    planned,
)
from normlib.kernels.batch_norm.tiles import (
    BATCH,
    channel_values,
    elements_before,
    mask_of_tile,
    next_tile,
    offsets_in_tile,
    previous_tile,
    start_of_tile,
    store_planes,
)
from normlib.kernels.host import counters, like, on, statistics_dtype
from normlib.kernels.numerics import accumulator, divide, even_share, from_pair, load, store
from normlib.kernels.plan import Device
from normlib.kernels.reduction import is_finite, merge_moments, renormalize, rstd_of_norm, tile_moments
from normlib.kernels.traffic import TileSweep

# What is left of a split, or of all: mean, low, sum of |x|^p; for p = inf mean, low, maximum, ties.
PLANES = {"1": 3, "2": 3, "inf": 4}
NORMS = TileSweep(("x",))

# ------------------------------------------------------------------------------------------------------- the norms


@triton.jit
def merge_peaks(peak_a, ties_a, peak_b, ties_b):
    """Returns the larger of two maxima, and how many elements have it; NaN beside a NaN."""
    peak = tl.maximum(peak_a, peak_b, propagate_nan=tl.PropagateNan.ALL)
    return peak, tl.where(peak_a == peak, ties_a, 0.0) + tl.where(peak_b == peak, ties_b, 0.0)


@triton.jit
def tile_peak(x, mask):
    """Returns (max |x|, how many elements have it) of each channel of a tile; NaN beside a NaN, unlike tl.max."""
    size = tl.where(mask, tl.abs(x), 0.0)
    peak = tl.max(size, 1, keep_dims=True) + tl.sum(tl.where(size == size, 0.0, size), 1, keep_dims=True)
    return peak, tl.sum((mask & (size == peak)).to(x.dtype), 1, keep_dims=True)


@triton.jit
def norms_of_tiles(
    x_ptr,
    first,
    last,
    c0,
    C,
    S,
    P: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
    ACC: tl.constexpr,
):
    """Returns (mean, low, sum of |x|^p or maximum, ties) of tiles [first, last): a column each."""
    NARROW: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth == 16
    none = tl.zeros([BLOCK_C, 1], ACC)
    count = tl.zeros([1, 1], ACC)
    mean, low, size, rest = none, none, none, none  # rest: ties, or what a sum has lost so far
    offsets = offsets_in_tile(C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
    start, s0 = start_of_tile(first, c0, C, S, LAST, ALIGN, BLOCK_S)
    for _ in tl.range(first, last, num_stages=STAGES):
        mask = mask_of_tile(s0, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        x = load(x_ptr + start + offsets, mask, ACC)
        tile_count = tl.minimum(BLOCK_S, S - s0).to(ACC)
        tile_mean, tile_low, _ = tile_moments(x, mask, tile_count, 1, NARROW)
        count, mean, low, _ = merge_moments(count, mean, low, none, tile_count, tile_mean, tile_low, none)
        if P == "inf":
            peak, ties = tile_peak(x, mask)
            size, rest = merge_peaks(size, rest, peak, ties)
        else:
            term = tl.abs(x) if P == "1" else x * x
            size, rest = renormalize(size, tl.sum(term, 1, keep_dims=True) + rest)
            rest = tl.where(is_finite(size), rest, 0.0)
        start, s0 = next_tile(start, s0, C, S, LAST, ALIGN, BLOCK_S)
    # Beside an infinite mean low is NaN; what adds the two must find that infinity.
    return mean, tl.where(is_finite(low), low, 0.0), size, rest


@triton.jit
def merge_split_peaks(partials_ptr, c0, C, splits, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, ACC: tl.constexpr):
    """Returns (maximum, ties) of BLOCK_C channels from the planes of each, (2, splits, C)."""
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    p = tl.arange(0, BLOCK_P)[None, :]
    plane = tl.cast(splits, tl.int64) * C
    peak = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    ties = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    for start in range(0, splits, BLOCK_P):
        split = start + p
        mask = (split < splits) & (c < C)
        source = partials_ptr + split.to(tl.int64) * C + c
        peak, ties = merge_peaks(peak, ties, load(source, mask, ACC), load(source + plane, mask, ACC))
    most, _ = tile_peak(peak, (p < splits) & (c < C))
    return most, tl.sum(tl.where(peak == most, ties, 0.0), 1, keep_dims=True)


@triton.jit(do_not_specialize=BATCH)
def _lp_norm_stats_kernel(
    partials_ptr,  # (PLANES, splits, C)
    x_ptr,
    C,
    S,
    tiles,
    splits,
    P: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_C
    split = tl.program_id(1)
    first, last = even_share(split, splits, tiles)
    mean, low, size, rest = norms_of_tiles(x_ptr, first, last, c0, C, S, P, LAST, ALIGN, BLOCK_C, BLOCK_S, STAGES, ACC)
    if P == "inf":
        store_planes(partials_ptr, split, splits, c0, C, mean, low, size, BLOCK_C)
        c = c0 + tl.arange(0, BLOCK_C)[:, None]
        store(partials_ptr + (3 * tl.cast(splits, tl.int64) + split) * C + c, rest, c < C)
    else:
        store_planes(partials_ptr, split, splits, c0, C, mean, low, size + rest, BLOCK_C)


@triton.jit(do_not_specialize=BATCH)
def _lp_norm_merge_kernel(
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,  # (C,)
    peak_ptr,  # (2, C): maximum, ties or inf where sqrt(eps) is above it; of p = inf, or None
    running_mean_ptr,  # (C,), updated in place, or None
    running_norm_ptr,  # (C,), updated in place, or None
    partials_ptr,  # (PLANES, splits, C)
    C,
    S,
    tiles,
    splits,
    eps,
    eps_low,
    momentum,
    momentum_low,
    BLOCK_S,
    P: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(partials_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_N
    c = c0 + tl.arange(0, BLOCK_N)[:, None]
    mask = c < C
    mean, low, _ = merge_splits(partials_ptr, c0, C, S, tiles, splits, BLOCK_N, BLOCK_S, BLOCK_P, ACC, False)
    sizes_ptr = partials_ptr + 2 * tl.cast(splits, tl.int64) * C
    if P == "inf":
        size, ties = merge_split_peaks(sizes_ptr, c0, C, splits, BLOCK_N, BLOCK_P, ACC)
        norm = size.to(tl.float64)
        below = norm < tl.sqrt(from_pair(eps, eps_low, tl.float64))
        store(peak_ptr + c, size, mask)
        store(peak_ptr + C + c, tl.where(below, float("inf"), ties), mask)
    else:
        size = add_splits(sizes_ptr, c0, C, splits, BLOCK_N, BLOCK_P, ACC)
        norm = size.to(tl.float64) / elements_before(tiles, S, BLOCK_S).to(tl.float64)
        if P == "2":
            norm = tl.sqrt(norm)
    store(mean_ptr + c, mean, mask)
    store(mean_ptr + C + c, low, mask)
    store(rstd_ptr + c, rstd_of_norm(norm, eps, eps_low, P, ACC), mask)
    if running_mean_ptr is not None:
        # In float64, as batch norm's are.
        m = from_pair(momentum, momentum_low, tl.float64)
        new_mean = mean.to(tl.float64) + low.to(tl.float64)
        old_mean = load(running_mean_ptr + c, mask, tl.float64)
        old_norm = load(running_norm_ptr + c, mask, tl.float64)
        store(running_mean_ptr + c, (old_mean * (1.0 - m) + new_mean * m).to(ACC), mask)
        store(running_norm_ptr + c, (old_norm * (1.0 - m) + norm * m).to(ACC), mask)


# --------------------------------------------------------------------------------------------------- the gradient


@triton.jit(do_not_specialize=BATCH)
def _lp_norm_input_gradient_kernel(
    dx_ptr,
    dy_ptr,
    x_ptr,
    rstd_ptr,
    peak_ptr,  # (2, C), of p = inf, or None
    weight_ptr,
    dw_ptr,  # (C,): sum(dy x_hat), in the statistics' dtype
    db_ptr,  # (C,): sum(dy)
    C,
    S,
    tiles,
    splits,
    P: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
    EVICT: tl.constexpr = "",  # of what the last sweep moves
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_C
    first, last = even_share(splits - 1 - tl.program_id(1), splits, tiles)
    rstd = channel_values(rstd_ptr, c0, C, BLOCK_C, ACC)
    scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
    n = elements_before(tiles, S, BLOCK_S).to(ACC)
    dw = channel_values(dw_ptr, c0, C, BLOCK_C, ACC)
    c2 = divide(channel_values(db_ptr, c0, C, BLOCK_C, ACC), n)
    # dw dsigma/dx is c1 times sign(x), x, or the sign of a maximum.
    if P == "inf":
        peak = channel_values(peak_ptr, c0, C, BLOCK_C, ACC)
        c1 = divide(dw, channel_values(peak_ptr + C, c0, C, BLOCK_C, ACC))
    else:
        c1 = divide(dw * rstd, n) if P == "2" else divide(dw, n)
    offsets = offsets_in_tile(C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
    start, s0 = start_of_tile(last - 1, c0, C, S, LAST, ALIGN, BLOCK_S)
    for _ in tl.range(first, last, num_stages=STAGES):
        mask = mask_of_tile(s0, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        at = start + offsets
        x = load(x_ptr + at, mask, ACC, EVICT)
        dy = load(dy_ptr + at, mask, ACC, EVICT)
        direction = x
        if P != "2":
            direction = tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, x))  # of NaN NaN
        if P == "inf":
            direction = tl.where(tl.abs(x) == peak, direction, 0.0)
        store(dx_ptr + at, scale * ((dy - c2) - direction * c1), mask, EVICT)
        start, s0 = previous_tile(start, s0, C, S, LAST, ALIGN, BLOCK_S)


# ---------------------------------------------------------------------------------------------------------- launchers


def order(p: float) -> str:
    """Returns p as kernels take it: the text 1, 2 or inf."""
    return f"{p:g}"


def empty_peak(x: Tensor, p: float) -> Tensor:
    """Returns memory (2, C) for the maximum and the ties of each channel of x (N, C, *); empty unless p is inf."""
    return x.new_empty((2, x.shape[1] if order(p) == "inf" else 0), dtype=statistics_dtype(x))


def lp_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_norm: Tensor | None,
    p: float,
    momentum: float,
    eps: float,
    device: Device | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (y, mean (2, C), rstd (C,), peak (2, C) or (2, 0)) of x (N, C, *).

    Running buffers, if given, are updated in place.
    """
    x, device, plan = planned(x, device)
    y = torch.empty_like(x)
    mean, rstd = empty_statistics(x)
    peak = empty_peak(x, p)
    if x.numel() == 0:
        return y, mean.zero_(), rstd.zero_(), peak.zero_()
    partials = mean.new_empty((PLANES[order(p)], plan.splits, plan.channels))
    with on(x):
        launch_sweep(_lp_norm_stats_kernel, plan, partials, x, sweep=NORMS, P=order(p))
        kept = (mean, rstd, peak if order(p) == "inf" else None, running_mean, running_norm)
        launch_merge(_lp_norm_merge_kernel, plan, device, *kept, partials, scalars=(eps, momentum), P=order(p))
        normalize(y, x, mean, rstd, weight, bias, plan, eps=eps)
    return y, mean, rstd, peak


def lp_norm_eval_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_norm: Tensor,
    p: float,
    eps: float,
    device: Device | None = None,
) -> Tensor:
    """Returns y of x (N, C, *) with given statistics, in one sweep."""
    x, _, plan = planned(x, device)
    y = torch.empty_like(x)
    if x.numel():
        with on(x):
            normalize(y, x, running_mean, running_norm, weight, bias, plan, eps=eps, evaluating=True, P=order(p))
    return y


def lp_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    peak: Tensor | None,
    weight: Tensor | None,
    p: float,
    eps: float,
    evaluating: bool,
    need_dx: bool,
    need_sums: bool,
    device: Device | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns (dx, dw, db) of x (N, C, *); dw and db (C,) in the statistics' dtype; None where not needed.

    mean, rstd and peak are as saved by the forward pass; in evaluation running_mean, running_norm and None.
    """
    x, device, plan = planned(x, device)
    dy = like(x, dy)
    dx = torch.empty_like(x) if need_dx else None
    partials = dw = db = None
    if need_sums or (need_dx and not evaluating):
        dw, db = (torch.empty(plan.channels, dtype=statistics_dtype(x), device=x.device) for _ in range(2))
        partials = dw.new_empty((2, plan.splits, plan.channels))
    if x.numel() == 0:
        return dx, *(None if t is None else t.zero_() for t in (dw, db))
    with on(x):
        dx_here = dx if evaluating else None
        if partials is not None or dx_here is not None:
            arrived = None if partials is None else counters(plan.groups, x.device)
            tensors = (dw, db, partials, arrived, dx_here, None, dy, None, x, mean, rstd, weight, None)
            constants = {"EVAL": evaluating, "P": order(p) if evaluating else None, "RELU": False, "PRE_RELU": False}
            constants["BLOCK_P"] = plan.sum_block_p
            way = SUMS if partials is not None else SUMS_WITHOUT_X
            launch_sweep(_batch_norm_reduce_kernel, plan, *tensors, sweep=way, scalars=(eps,), **constants)
        if need_dx and not evaluating:
            peak = peak if order(p) == "inf" else None
            tensors = (dx, dy, x, rstd, peak, weight, dw, db)
            constants = {"P": order(p), "EVICT": plan.evict}
            launch_sweep(_lp_norm_input_gradient_kernel, plan, *tensors, sweep=INPUT_GRADIENT, **constants)
    return dx, dw, db
