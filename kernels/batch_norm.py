"""Batch normalization of (N, C, *), contiguous or channels-last, each in its own layout.

Forward in training (Ioffe and Szegedy 2015, algorithm 1), over the n = N * prod(*) elements of a channel:

    mean  = sum(x) / n                        running_mean <- (1 - momentum) running_mean + momentum mean
    var   = sum((x - mean)^2) / n             running_var  <- (1 - momentum) running_var  + momentum var n / (n - 1)
    rstd  = 1 / sqrt(var + eps)
    x_hat = (x - mean) rstd
    y     = x_hat weight + bias

Backward in training, and in evaluation, where mean and rstd are constants:

    db = sum(dy)       dw = sum(dy x_hat)
    dx = weight rstd (dy - db / n - x_hat dw / n)            dx = weight rstd dy

A channel is split over programs. Three launches each way: partial moments (or sums) a split, their merge in a fixed
order, and one sweep that applies the result. The applying sweep goes through the tiles backwards, to meet in cache
what the first sweep read last. Units of one activation moved: training forward 3, backward 5; evaluation forward 2,
backward 3. Saved for backward: x, the mean as a pair of floats, rstd.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from normlib.kernels import plan as plans
from normlib.kernels.device import device_of, on
from normlib.kernels.numerics import accumulator, blocks, divide, float_pair, from_pair, load, reciprocal_sqrt, store
from normlib.kernels.plan import Device
from normlib.kernels.reduction import merge_all_moments, merge_moments, sum_partials, tile_moments

# Arguments that follow the batch size: no compilation of their own for a 1 or a multiple of 16.
BATCH = ("tiles", "splits")


@triton.jit
def _tile_range(split, splits, tiles):
    """The tiles [first, last) of one split: contiguous, and as even as they come."""
    share, over = tiles // splits, tiles % splits
    first = split * share + tl.minimum(split, over)
    return first, first + share + (split < over).to(tl.int32)


@triton.jit
def _elements_before(tile, S, BLOCK_S):
    """Elements of one channel in the tiles before this one."""
    tiles = blocks(S, BLOCK_S)
    return (tile // tiles).to(tl.int64) * S + tl.minimum((tile % tiles) * BLOCK_S, S)


@triton.jit
def _tile(tile, c0, C, S, LAST: tl.constexpr, ALIGN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    """(scalar int64 offset of the tile, int32 offsets inside it, mask, elements of a channel in it)."""
    tiles = blocks(S, BLOCK_S)
    batch = (tile // tiles).to(tl.int64)
    s0 = (tile % tiles) * BLOCK_S
    c = tl.arange(0, BLOCK_C)[:, None]
    s = tl.arange(0, BLOCK_S)[None, :]
    # Dividing and multiplying tells the compiler that runs start and end at multiples of ALIGN: loads that wide.
    if LAST:
        C = C // ALIGN * ALIGN
        base = s0.to(tl.int64) * C + c0
        offsets = s * C + c
    else:
        S = S // ALIGN * ALIGN
        base = (batch * C + c0) * S + s0
        offsets = c * S + s
    mask = (c0 + c < C) & (s0 + s < S)
    return base, offsets, mask, tl.minimum(BLOCK_S, S - s0)


@triton.jit
def _channel(pointer, c0, C, BLOCK_C: tl.constexpr, ACC: tl.constexpr):
    """A per-channel vector's values for this channel group, as a column; zeros past the last channel."""
    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    return load(pointer + c, c < C, ACC)


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_stats_kernel(
    partials_ptr,  # (3, splits, C): mean, low, M2 of each split
    x_ptr,
    C,
    S,
    tiles,
    splits,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_C
    split = tl.program_id(1)
    first, last = _tile_range(split, splits, tiles)

    count = tl.zeros([1, 1], ACC)
    mean = tl.zeros([BLOCK_C, 1], ACC)
    low = tl.zeros([BLOCK_C, 1], ACC)
    m2 = tl.zeros([BLOCK_C, 1], ACC)
    for tile in range(first, last):
        base, offsets, mask, elements = _tile(tile, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        x = load(x_ptr + base + offsets, mask, ACC)
        tile_count = elements.to(ACC)
        tile_mean, tile_low, tile_m2 = tile_moments(x, mask, tile_count, 1)
        count, mean, low, m2 = merge_moments(count, mean, low, m2, tile_count, tile_mean, tile_low, tile_m2)

    c = c0 + tl.arange(0, BLOCK_C)[:, None]
    out = partials_ptr + split.to(tl.int64) * C + c
    plane = tl.cast(splits, tl.int64) * C
    store(out, mean, c < C)
    store(out + plane, low, c < C)
    store(out + 2 * plane, m2, c < C)


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_merge_kernel(
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,  # (C,)
    running_mean_ptr,  # (C,), updated in place, or None
    running_var_ptr,  # (C,), updated in place, or None
    partials_ptr,  # (3, splits, C)
    C,
    S,
    tiles,
    splits,
    eps,
    eps_low,
    momentum,
    momentum_low,
    BLOCK_S,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(partials_ptr.dtype)
    c = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    p = tl.arange(0, BLOCK_P)[:, None]
    plane = tl.cast(splits, tl.int64) * C

    # Lane p of a channel takes splits p, p + BLOCK_P, ...; then the lanes are merged at once.
    count = tl.zeros([BLOCK_P, 1], ACC)
    mean = tl.zeros([BLOCK_P, BLOCK_N], ACC)
    low = tl.zeros([BLOCK_P, BLOCK_N], ACC)
    m2 = tl.zeros([BLOCK_P, BLOCK_N], ACC)
    for start in range(0, splits, BLOCK_P):
        split = start + p
        mask = (split < splits) & (c < C)
        first, last = _tile_range(split, splits, tiles)
        elements = _elements_before(last, S, BLOCK_S) - _elements_before(first, S, BLOCK_S)
        split_count = tl.where(split < splits, elements, 0).to(ACC)
        source = partials_ptr + split.to(tl.int64) * C + c
        count, mean, low, m2 = merge_moments(
            count,
            mean,
            low,
            m2,
            split_count,
            load(source, mask, ACC),
            load(source + plane, mask, ACC),
            load(source + 2 * plane, mask, ACC),
        )

    n = _elements_before(tiles, S, BLOCK_S).to(ACC)
    first_mean = tl.sum(tl.where(p == 0, mean, 0.0), 0, keep_dims=True)
    mean, low, m2 = merge_all_moments(count, mean, low, m2, p < splits, n, first_mean, 0)
    var = divide(m2, n)
    store(mean_ptr + c, mean, c < C)
    store(mean_ptr + C + c, low, c < C)
    store(rstd_ptr + c, reciprocal_sqrt(var + from_pair(eps, eps_low, ACC)), c < C)

    if running_mean_ptr is not None:
        # In float64: these few values are kept for the whole of a training, and go through three roundings otherwise.
        m = from_pair(momentum, momentum_low, tl.float64)
        old_mean = load(running_mean_ptr + c, c < C, tl.float64)
        old_var = load(running_var_ptr + c, c < C, tl.float64)
        new_mean = mean.to(tl.float64) + low.to(tl.float64)
        unbiased = m2.to(tl.float64) / (n.to(tl.float64) - 1.0)
        store(running_mean_ptr + c, (old_mean * (1.0 - m) + new_mean * m).to(ACC), c < C)
        store(running_var_ptr + c, (old_var * (1.0 - m) + unbiased * m).to(ACC), c < C)


@triton.jit
def _statistics(mean_ptr, rstd_ptr, eps, eps_low, c0, C, EVAL: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr):
    """(mean, low, rstd) of a channel group: as saved, or in evaluation from running_mean and running_var."""
    mean = _channel(mean_ptr, c0, C, BLOCK_C, ACC)
    if EVAL:
        variance = _channel(rstd_ptr, c0, C, BLOCK_C, ACC)
        return mean, tl.zeros_like(mean), reciprocal_sqrt(variance + from_pair(eps, eps_low, ACC))
    else:
        return mean, _channel(mean_ptr + C, c0, C, BLOCK_C, ACC), _channel(rstd_ptr, c0, C, BLOCK_C, ACC)


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_normalize_kernel(
    y_ptr,
    x_ptr,
    mean_ptr,  # (2, C): mean, low; in evaluation running_mean (C,)
    rstd_ptr,  # (C,); in evaluation running_var
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    C,
    S,
    tiles,
    splits,
    eps,
    eps_low,
    EVAL: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_C
    first, last = _tile_range(splits - 1 - tl.program_id(1), splits, tiles)
    mean, low, scale = _statistics(mean_ptr, rstd_ptr, eps, eps_low, c0, C, EVAL, BLOCK_C, ACC)
    if weight_ptr is not None:
        scale *= _channel(weight_ptr, c0, C, BLOCK_C, ACC)
    shift = tl.zeros_like(mean)
    if bias_ptr is not None:
        shift = _channel(bias_ptr, c0, C, BLOCK_C, ACC)
    for i in range(first, last):
        base, offsets, mask, _ = _tile(first + last - 1 - i, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        x = load(x_ptr + base + offsets, mask, ACC)
        store(y_ptr + base + offsets, ((x - mean) - low) * scale + shift, mask)


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_reduce_kernel(
    partials_ptr,  # (2, splits, C): sum(dy x_hat), sum(dy) of each split; or None
    dx_ptr,  # written here in evaluation, where dx needs no sums; or None
    dy_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    C,
    S,
    tiles,
    splits,
    eps,
    eps_low,
    EVAL: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_C
    split = tl.program_id(1)
    first, last = _tile_range(split, splits, tiles)
    mean, low, rstd = _statistics(mean_ptr, rstd_ptr, eps, eps_low, c0, C, EVAL, BLOCK_C, ACC)
    scale = rstd
    if weight_ptr is not None:
        scale = rstd * _channel(weight_ptr, c0, C, BLOCK_C, ACC)

    dw = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    db = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    for tile in range(first, last):
        base, offsets, mask, _ = _tile(tile, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        dy = load(dy_ptr + base + offsets, mask, ACC)
        if partials_ptr is not None:
            x = load(x_ptr + base + offsets, mask, ACC)
            db += dy
            dw += tl.where(mask, dy * ((x - mean) - low), 0.0)
        if dx_ptr is not None:
            store(dx_ptr + base + offsets, dy * scale, mask)

    if partials_ptr is not None:
        c = c0 + tl.arange(0, BLOCK_C)[:, None]
        out = partials_ptr + split.to(tl.int64) * C + c
        store(out, tl.sum(dw, 1, keep_dims=True) * rstd, c < C)
        store(out + tl.cast(splits, tl.int64) * C, tl.sum(db, 1, keep_dims=True), c < C)


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_input_gradient_kernel(
    dx_ptr,
    dy_ptr,
    x_ptr,
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,
    weight_ptr,
    dw_ptr,  # (C,): sum(dy x_hat), in the statistics' dtype
    db_ptr,  # (C,): sum(dy)
    C,
    S,
    tiles,
    splits,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_C
    first, last = _tile_range(splits - 1 - tl.program_id(1), splits, tiles)
    mean, low, rstd = _statistics(mean_ptr, rstd_ptr, 0.0, 0.0, c0, C, False, BLOCK_C, ACC)
    scale = rstd
    if weight_ptr is not None:
        scale = rstd * _channel(weight_ptr, c0, C, BLOCK_C, ACC)
    n = _elements_before(tiles, S, BLOCK_S).to(ACC)
    c1 = divide(_channel(dw_ptr, c0, C, BLOCK_C, ACC) * rstd, n)
    c2 = divide(_channel(db_ptr, c0, C, BLOCK_C, ACC), n)
    for i in range(first, last):
        base, offsets, mask, _ = _tile(first + last - 1 - i, c0, C, S, LAST, ALIGN, BLOCK_C, BLOCK_S)
        dy = load(dy_ptr + base + offsets, mask, ACC)
        x = load(x_ptr + base + offsets, mask, ACC)
        dx = scale * ((dy - c2) - ((x - mean) - low) * c1)
        store(dx_ptr + base + offsets, dx, mask)


def is_channels_last(x: Tensor) -> bool:
    """Whether (N, C, *) has its channels innermost: channels-last memory, or no positions at all."""
    return x.dim() == 2 or (not x.is_contiguous() and x.movedim(1, -1).is_contiguous())


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """(x in one of the two layouts, whether that is channels-last); a copy only if it is in neither."""
    last = is_channels_last(x)
    return (x if last and x.movedim(1, -1).is_contiguous() else x.contiguous()), last


def _like(x, tensor):
    """The tensor in x's layout, copied only where it is in another."""
    if tensor.stride() == x.stride():
        return tensor
    return torch.empty_like(x, dtype=tensor.dtype).copy_(tensor)


def _launch(kernel, plan, *tensors, eps=None, **constants):
    kernel[(plan.groups, plan.splits)](
        *tensors,
        plan.channels,
        plan.positions,
        plan.tiles,
        plan.splits,
        *(() if eps is None else float_pair(eps)),
        LAST=plan.channels_last,
        ALIGN=plan.align,
        BLOCK_C=plan.block_c,
        BLOCK_S=plan.block_s,
        **plan.options,
        **constants,
    )


def _statistics_dtype(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def batch_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    device: Device | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean (2, C), rstd (C,)) of x (N, C, *); running buffers, if given, are updated in place."""
    x, last = dense(x)
    device = device or device_of(x)
    plan = plans.batch_norm(tuple(x.shape), last, x.element_size(), device)
    y = torch.empty_like(x)
    stats = _statistics_dtype(x)
    mean = torch.empty((2, plan.channels), dtype=stats, device=x.device)
    rstd = torch.empty(plan.channels, dtype=stats, device=x.device)
    if x.numel() == 0:
        return y, mean.zero_(), rstd.zero_()
    partials = torch.empty((3, plan.splits, plan.channels), dtype=stats, device=x.device)
    merge = plans.merge(plan.splits, plan.channels, device)
    with on(x):
        _launch(_batch_norm_stats_kernel, plan, partials, x)
        _batch_norm_merge_kernel[(triton.cdiv(plan.channels, merge.block_n),)](
            mean,
            rstd,
            running_mean,
            running_var,
            partials,
            plan.channels,
            plan.positions,
            plan.tiles,
            plan.splits,
            *float_pair(eps),
            *float_pair(momentum),
            plan.block_s,
            BLOCK_P=merge.block_p,
            BLOCK_N=merge.block_n,
            **merge.options,
        )
        _launch(_batch_norm_normalize_kernel, plan, y, x, mean, rstd, weight, bias, eps=eps, EVAL=False)
    return y, mean, rstd


def batch_norm_eval_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    device: Device | None = None,
) -> Tensor:
    """y of x (N, C, *) with given statistics, in one sweep."""
    x, last = dense(x)
    y = torch.empty_like(x)
    if x.numel():
        plan = plans.batch_norm(tuple(x.shape), last, x.element_size(), device or device_of(x))
        with on(x):
            _launch(
                _batch_norm_normalize_kernel, plan, y, x, running_mean, running_var, weight, bias, eps=eps, EVAL=True
            )
    return y


def batch_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    eps: float,
    evaluating: bool,
    need_dx: bool,
    need_sums: bool,
    device: Device | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dw, db) of x (N, C, *); dw and db (C,) in the statistics' dtype; None where not needed.

    mean and rstd are as saved by the forward pass; in evaluation running_mean and running_var.
    """
    x, last = dense(x)
    dy = _like(x, dy)
    device = device or device_of(x)
    plan = plans.batch_norm(tuple(x.shape), last, x.element_size(), device)
    stats = _statistics_dtype(x)
    dx = torch.empty_like(x) if need_dx else None
    partials = dw = db = None
    if need_sums or not evaluating:
        dw, db = (torch.empty(plan.channels, dtype=stats, device=x.device) for _ in range(2))
        partials = torch.empty((2, plan.splits, plan.channels), dtype=stats, device=x.device)
    if x.numel() == 0:
        return dx, *(None if t is None else t.zero_() for t in (dw, db))
    tensors = (dy, x, mean, rstd, weight)
    with on(x):
        dx_here = dx if evaluating else None
        if partials is not None or dx_here is not None:
            _launch(_batch_norm_reduce_kernel, plan, partials, dx_here, *tensors, eps=eps, EVAL=evaluating)
        if partials is not None:
            sum_partials(partials, (dw, db), plans.merge(plan.splits, plan.channels, device))
        if need_dx and not evaluating:
            _launch(_batch_norm_input_gradient_kernel, plan, dx, *tensors, dw, db)
    return dx, dw, db
