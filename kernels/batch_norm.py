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

Fused with what stands around it in a net, a residual r and ReLUs:

    y = relu(x_hat weight + bias [+ r])       dz = dy where y > 0, else 0: r's gradient, and dy in the formulas above
    y of relu(x) in place of x                dx as above where x > 0, else 0

No activation is kept for that: without a residual backward computes the sign again from x, with one forward keeps a bit
an element.

A channel is split over programs, and one of two plans (plan.py) brings their results together:

streaming   three launches each way: partial moments (or sums) of each split, their merge in a fixed order, one sweep
            that applies the result. Units of one activation moved: training forward 3, backward 5.
one launch  the splits of a channel group meet at a barrier, merge the partials each for itself, and apply the result
            to their own tiles, which are still in cache: 2 and 3. A group that is one program's needs no barrier.

In both the last sweep goes backwards, to meet what was read last, and where a tensor outgrows its share of the cache
(plan.evict) what that sweep moves leaves first, so as to push out nothing that is still to be met.

Evaluation is one sweep: forward 2, backward 3. ReLUs move nothing; a residual is one unit more each way, and its signs
1/16 in 16 bits. Saved for backward: x, the mean as a pair of floats, rstd, those signs. The sweeps themselves, which
the plans share, are in batch_norm_sweeps.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from normlib.kernels import plan as plans
from normlib.kernels.barrier import arrive, wait
from normlib.kernels.batch_norm_sweeps import (
    add_splits,
    channel_values,
    elements_before,
    finish_statistics,
    input_gradient_of_tiles,
    load_noise,
    merge_splits,
    moments_of_tiles,
    normalize_tiles,
    scale_of,
    shift_of,
    statistics,
    store_planes,
    sums_of_tiles,
)
from normlib.kernels.device import device_of, on
from normlib.kernels.numerics import accumulator, blocks, even_share, float_pair, store
from normlib.kernels.plan import Device
from normlib.kernels.reduction import sum_partials

# Arguments that follow the batch size: no compilation of their own for a 1 or a multiple of 16.
BATCH = ("S", "tiles", "splits", "lag")

# ----------------------------------------------------------------------------------------------------- three launches


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_stats_kernel(
    partials_ptr,  # (3, splits, C): mean, low, M2 of each split
    x_ptr,
    C,
    S,
    tiles,
    splits,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_C
    split = tl.program_id(1)
    first, last = even_share(split, splits, tiles)
    mean, low, m2 = moments_of_tiles(x_ptr, first, last, c0, C, S, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC)
    store_planes(partials_ptr, split, splits, c0, C, mean, low, m2, BLOCK_C)


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
    c0 = tl.program_id(0) * BLOCK_N
    mean, low, m2 = merge_splits(partials_ptr, c0, C, S, tiles, splits, BLOCK_N, BLOCK_S, BLOCK_P, ACC)
    finish_statistics(
        mean_ptr,
        rstd_ptr,
        running_mean_ptr,
        running_var_ptr,
        mean,
        low,
        m2,
        elements_before(tiles, S, BLOCK_S).to(ACC),
        True,
        c0,
        C,
        eps,
        eps_low,
        momentum,
        momentum_low,
        BLOCK_N,
        ACC,
    )


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_normalize_kernel(
    y_ptr,
    signs_ptr,  # one bit an element, for backward, or None
    x_ptr,
    residual_ptr,  # like x, or None
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
    RELU: tl.constexpr,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    EVICT: tl.constexpr = "",  # of what the last sweep moves
    P: tl.constexpr = None,  # in evaluation, of lp_norm.py: rstd is of a running norm of this order
    STD: tl.constexpr = False,  # whether evaluation's is running_std
    noise_ptr=None,  # (4, C), see noisy_batch_norm.py, or None
    seed_ptr=None,  # (), with noise
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_C
    first, last = even_share(splits - 1 - tl.program_id(1), splits, tiles)
    mean, low, rstd = statistics(mean_ptr, rstd_ptr, eps, eps_low, c0, C, EVAL, BLOCK_C, ACC, P, STD)
    scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
    shift = shift_of(bias_ptr, c0, C, BLOCK_C, ACC)
    normalize_tiles(
        y_ptr, signs_ptr, x_ptr, residual_ptr, mean, low, scale, shift, first, last, c0, C, S,
        RELU, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC, EVICT, noise_ptr, seed_ptr
    )  # fmt: skip


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_reduce_kernel(
    partials_ptr,  # (2, splits, C): sum(dz x_hat), sum(dz) of each split; or None
    dx_ptr,  # written here in evaluation, where dx needs no sums; or None
    dz_ptr,  # the residual's gradient, written here where no other sweep follows; or None
    dy_ptr,
    signs_ptr,  # of forward with a residual, or None
    x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    C,
    S,
    tiles,
    splits,
    eps,
    eps_low,
    EVAL: tl.constexpr,
    RELU: tl.constexpr,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    P: tl.constexpr = None,  # in evaluation, of lp_norm.py: rstd is of a running norm of this order
    STD: tl.constexpr = False,  # whether evaluation's is running_std
    noise_ptr=None,  # (4, C), see noisy_batch_norm.py, or None
    seed_ptr=None,  # (), with noise
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    SUMS: tl.constexpr = partials_ptr is not None
    c0 = tl.program_id(0) * BLOCK_C
    split = tl.program_id(1)
    first, last = even_share(split, splits, tiles)
    mean, low, rstd = statistics(mean_ptr, rstd_ptr, eps, eps_low, c0, C, EVAL, BLOCK_C, ACC, P, STD)
    scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
    shift = shift_of(bias_ptr, c0, C, BLOCK_C, ACC)
    noise = None if noise_ptr is None else load_noise(noise_ptr, seed_ptr, c0, C, BLOCK_C, ACC)
    dw, db = sums_of_tiles(
        dx_ptr, dz_ptr, dy_ptr, signs_ptr, x_ptr, mean, low, rstd, scale, shift, first, last, c0, C, S,
        SUMS, RELU, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC, noise
    )  # fmt: skip
    if SUMS:
        store_planes(partials_ptr, split, splits, c0, C, dw, db, None, BLOCK_C)


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_input_gradient_kernel(
    dx_ptr,
    dz_ptr,  # the residual's gradient, or None
    dy_ptr,
    signs_ptr,  # of forward with a residual, or None
    x_ptr,
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    dw_ptr,  # (C,): sum(dz x_hat), in the statistics' dtype
    db_ptr,  # (C,): sum(dz)
    count_ptr,  # (1,): the elements of a channel that mean, rstd, dw and db are of; or None: those of x
    C,
    S,
    tiles,
    splits,
    RELU: tl.constexpr,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    EVICT: tl.constexpr = "",  # of what the last sweep moves
    noise_ptr=None,  # (4, C), see noisy_batch_norm.py, or None
    seed_ptr=None,  # (), with noise
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_C
    first, last = even_share(splits - 1 - tl.program_id(1), splits, tiles)
    mean, low, rstd = statistics(mean_ptr, rstd_ptr, 0.0, 0.0, c0, C, False, BLOCK_C, ACC)
    scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
    shift = shift_of(bias_ptr, c0, C, BLOCK_C, ACC)
    dw = channel_values(dw_ptr, c0, C, BLOCK_C, ACC)
    db = channel_values(db_ptr, c0, C, BLOCK_C, ACC)
    n = elements_before(tiles, S, BLOCK_S).to(ACC) if count_ptr is None else tl.load(count_ptr).to(ACC)
    noise = None if noise_ptr is None else load_noise(noise_ptr, seed_ptr, c0, C, BLOCK_C, ACC)
    input_gradient_of_tiles(
        dx_ptr, dz_ptr, dy_ptr, signs_ptr, x_ptr, mean, low, rstd, scale, shift, dw, db, n,
        first, last, c0, C, S, RELU, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC, EVICT, noise
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- one launch
#
# The grid is (windows, splits), all of it resident at once: a window takes the channel groups `window`, `window +
# windows`, ... one after another, all its splits at the same one. `lag` is how many groups the
# second sweep is behind the first: with as many as there are windows, nobody waits at the barrier of a group before
# having swept its next one.


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_forward_kernel(
    y_ptr,
    signs_ptr,  # one bit an element, for backward, or None
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,  # (C,)
    running_mean_ptr,  # (C,), updated in place, or None
    running_var_ptr,  # (C,), updated in place, or None
    partials_ptr,  # (3, splits, C), or None where there is one split
    arrived_ptr,  # (groups,) zeros, or None
    x_ptr,
    residual_ptr,  # like x, or None
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    C,
    S,
    tiles,
    splits,
    lag,
    eps,
    eps_low,
    momentum,
    momentum_low,
    RELU: tl.constexpr,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    EVICT: tl.constexpr = "",  # of what the last sweep moves
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    window, split, windows = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    groups = blocks(C, BLOCK_C)
    n = elements_before(tiles, S, BLOCK_S).to(ACC)
    first, last = even_share(split, splits, tiles)
    for group in range(window, groups + lag, windows):
        c0 = group * BLOCK_C
        if group < groups:
            mean, low, m2 = moments_of_tiles(x_ptr, first, last, c0, C, S, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC)
            if partials_ptr is not None:
                store_planes(partials_ptr, split, splits, c0, C, mean, low, m2, BLOCK_C)
                arrive(arrived_ptr + group)
        else:
            mean = tl.zeros([BLOCK_C, 1], ACC)
            low = tl.zeros([BLOCK_C, 1], ACC)
            m2 = tl.zeros([BLOCK_C, 1], ACC)
        late = group - lag
        if late >= 0:
            c0 = late * BLOCK_C
            if partials_ptr is not None:
                wait(arrived_ptr + late, splits)
                mean, low, m2 = merge_splits(partials_ptr, c0, C, S, tiles, splits, BLOCK_C, BLOCK_S, BLOCK_P, ACC)
            rstd = finish_statistics(
                mean_ptr,
                rstd_ptr,
                running_mean_ptr,
                running_var_ptr,
                mean,
                low,
                m2,
                n,
                split == 0,
                c0,
                C,
                eps,
                eps_low,
                momentum,
                momentum_low,
                BLOCK_C,
                ACC,
            )
            scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
            shift = shift_of(bias_ptr, c0, C, BLOCK_C, ACC)
            normalize_tiles(
                y_ptr, signs_ptr, x_ptr, residual_ptr, mean, low, scale, shift, first, last, c0, C, S,
                RELU, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC, EVICT
            )  # fmt: skip


@triton.jit(do_not_specialize=BATCH)
def _batch_norm_backward_kernel(
    dx_ptr,
    dz_ptr,  # the residual's gradient, or None
    dw_ptr,  # (C,): sum(dz x_hat), in the statistics' dtype
    db_ptr,  # (C,): sum(dz)
    partials_ptr,  # (2, splits, C), or None where there is one split
    arrived_ptr,  # (groups,) zeros, or None
    dy_ptr,
    signs_ptr,  # of forward with a residual, or None
    x_ptr,
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    C,
    S,
    tiles,
    splits,
    lag,
    RELU: tl.constexpr,
    PRE_RELU: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    EVICT: tl.constexpr = "",  # of what the last sweep moves
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    window, split, windows = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    groups = blocks(C, BLOCK_C)
    n = elements_before(tiles, S, BLOCK_S).to(ACC)
    first, last = even_share(split, splits, tiles)
    for group in range(window, groups + lag, windows):
        c0 = group * BLOCK_C
        if group < groups:
            mean, low, rstd = statistics(mean_ptr, rstd_ptr, 0.0, 0.0, c0, C, False, BLOCK_C, ACC)
            scale, shift = rstd, rstd  # which only a ReLU asks for here
            if RELU:
                scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
                shift = shift_of(bias_ptr, c0, C, BLOCK_C, ACC)
            dw, db = sums_of_tiles(
                None, None, dy_ptr, signs_ptr, x_ptr, mean, low, rstd, scale, shift, first, last, c0, C, S,
                True, RELU, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC
            )  # fmt: skip
            if partials_ptr is not None:
                store_planes(partials_ptr, split, splits, c0, C, dw, db, None, BLOCK_C)
                arrive(arrived_ptr + group)
        else:
            dw = tl.zeros([BLOCK_C, 1], ACC)
            db = tl.zeros([BLOCK_C, 1], ACC)
        late = group - lag
        if late >= 0:
            c0 = late * BLOCK_C
            if partials_ptr is not None:
                wait(arrived_ptr + late, splits)
                dw = add_splits(partials_ptr, c0, C, splits, BLOCK_C, BLOCK_P, ACC)
                plane = tl.cast(splits, tl.int64) * C
                db = add_splits(partials_ptr + plane, c0, C, splits, BLOCK_C, BLOCK_P, ACC)
            c = c0 + tl.arange(0, BLOCK_C)[:, None]
            store(dw_ptr + c, dw, (c < C) & (split == 0))
            store(db_ptr + c, db, (c < C) & (split == 0))
            mean, low, rstd = statistics(mean_ptr, rstd_ptr, 0.0, 0.0, c0, C, False, BLOCK_C, ACC)
            scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)
            shift = shift_of(bias_ptr, c0, C, BLOCK_C, ACC)
            input_gradient_of_tiles(
                dx_ptr, dz_ptr, dy_ptr, signs_ptr, x_ptr, mean, low, rstd, scale, shift, dw, db, n,
                first, last, c0, C, S, RELU, PRE_RELU, LAST, ALIGN, BLOCK_C, BLOCK_S, ACC, EVICT
            )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- launchers


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


def empty_signs(x: Tensor, device: Device | None = None) -> Tensor:
    """Where forward with a residual leaves a bit an element of x (N, C, *) for backward."""
    device = device or device_of(x)
    size = plans.batch_norm_sign_bytes(tuple(x.shape), is_channels_last(x), x.element_size(), device)
    return x.new_empty(size, dtype=torch.uint8)


def _kept(signs, plan):
    """The signs, where they are a bit of every element in these tiles."""
    bytes_ = plan.tiles * plan.groups * max(plan.block_c * plan.block_s // 8, 1)
    if signs is not None and signs.numel() < bytes_:
        raise ValueError(
            f"signs are {signs.numel()} bytes of {bytes_}: backward wants them from a forward that kept them"
        )
    return signs


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


def _launch_once(kernel, plan, once, outputs, planes, inputs, *scalars, **constants):
    """One launch for all of a pass, with the partials and the counters that its barriers need."""
    partials = arrived = None
    if once.splits > 1:
        device = outputs[0].device
        partials = torch.empty((planes, once.splits, plan.channels), dtype=_statistics_dtype(inputs[0]), device=device)
        arrived = torch.zeros(plan.groups, dtype=torch.int32, device=device)
    kernel[(once.windows, once.splits)](
        *outputs,
        partials,
        arrived,
        *inputs,
        plan.channels,
        plan.positions,
        plan.tiles,
        once.splits,
        once.ahead * once.windows,
        *scalars,
        LAST=plan.channels_last,
        ALIGN=plan.align,
        BLOCK_C=plan.block_c,
        BLOCK_S=plan.block_s,
        BLOCK_P=once.block_p,
        EVICT=plan.evict,
        **once.options,
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
    residual: Tensor | None = None,
    signs: Tensor | None = None,
    relu: bool = False,
    pre_relu: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean (2, C), rstd (C,)) of x (N, C, *); running buffers, if given, are updated in place.

    A residual like x is added before the ReLU; `signs`, from `empty_signs`, keeps what backward then has to know.
    """
    x, last = dense(x)
    residual = None if residual is None else _like(x, residual)
    device = device or device_of(x)
    plan = plans.batch_norm(tuple(x.shape), last, x.element_size(), device)
    y = torch.empty_like(x)
    stats = _statistics_dtype(x)
    mean = torch.empty((2, plan.channels), dtype=stats, device=x.device)
    rstd = torch.empty(plan.channels, dtype=stats, device=x.device)
    if x.numel() == 0:
        return y, mean.zero_(), rstd.zero_()
    scalars = (*float_pair(eps), *float_pair(momentum))
    relus = {"RELU": relu, "PRE_RELU": pre_relu}
    once = plans.batch_norm_once(plan, x.element_size(), 1, device, relu)
    if once is not None:
        outputs = (y, _kept(signs, plan), mean, rstd, running_mean, running_var)
        inputs = (x, residual, weight, bias)
        with on(x):
            _launch_once(_batch_norm_forward_kernel, plan, once, outputs, 3, inputs, *scalars, **relus)
        return y, mean, rstd
    partials = torch.empty((3, plan.splits, plan.channels), dtype=stats, device=x.device)
    merge = plans.merge(plan.splits, plan.channels, device)
    with on(x):
        _launch(_batch_norm_stats_kernel, plan, partials, x, PRE_RELU=pre_relu)
        _batch_norm_merge_kernel[(plans.cdiv(plan.channels, merge.block_n),)](
            mean,
            rstd,
            running_mean,
            running_var,
            partials,
            plan.channels,
            plan.positions,
            plan.tiles,
            plan.splits,
            *scalars,
            plan.block_s,
            BLOCK_P=merge.block_p,
            BLOCK_N=merge.block_n,
            **merge.options,
        )
        tensors = (y, _kept(signs, plan), x, residual, mean, rstd, weight, bias)
        _launch(_batch_norm_normalize_kernel, plan, *tensors, eps=eps, EVAL=False, EVICT=plan.evict, **relus)
    return y, mean, rstd


def batch_norm_eval_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    device: Device | None = None,
    residual: Tensor | None = None,
    signs: Tensor | None = None,
    relu: bool = False,
    pre_relu: bool = False,
    std: bool = False,
) -> Tensor:
    """y of x (N, C, *) with given statistics, in one sweep; residual and signs as in `batch_norm_forward`.

    With `std` running_var is a standard deviation instead, and eps unused.
    """
    x, last = dense(x)
    residual = None if residual is None else _like(x, residual)
    y = torch.empty_like(x)
    if x.numel():
        plan = plans.batch_norm(tuple(x.shape), last, x.element_size(), device or device_of(x))
        with on(x):
            tensors = (y, _kept(signs, plan), x, residual, running_mean, running_var, weight, bias)
            constants = {"EVAL": True, "RELU": relu, "PRE_RELU": pre_relu, "STD": std}
            _launch(_batch_norm_normalize_kernel, plan, *tensors, eps=eps, **constants)
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
    bias: Tensor | None = None,
    signs: Tensor | None = None,
    dz: Tensor | None = None,
    relu: bool = False,
    pre_relu: bool = False,
    std: bool = False,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dw, db) of x (N, C, *); dw and db (C,) in the statistics' dtype; None where not needed.

    mean and rstd are as saved by the forward pass; in evaluation running_mean and running_var, or with `std` a standard
    deviation. The gradient of a residual goes to dz, if given, which lies as x does. A ReLU wants the signs of forward,
    or without them the bias. With noise and its seed, see noisy_batch_norm.py, dy is what came back through it.
    """
    x, last = dense(x)
    dy = _like(x, dy)
    device = device or device_of(x)
    plan = plans.batch_norm(tuple(x.shape), last, x.element_size(), device)
    stats = _statistics_dtype(x)
    dx = torch.empty_like(x) if need_dx else None
    partials = dw = db = None
    if need_sums or (need_dx and not evaluating):
        dw, db = (torch.empty(plan.channels, dtype=stats, device=x.device) for _ in range(2))
    if x.numel() == 0:
        return dx, *(None if t is None else t.zero_() for t in (dw, db))
    relus = {"RELU": relu, "PRE_RELU": pre_relu}
    tensors = (dy, _kept(signs, plan), x, mean, rstd, weight, bias if relu and signs is None else None)
    if need_dx and not evaluating and noise is None:
        once = plans.batch_norm_once(plan, x.element_size(), 2, device, relu)
        if once is not None:
            with on(x):
                _launch_once(_batch_norm_backward_kernel, plan, once, (dx, dz, dw, db), 2, tensors, **relus)
            return dx, dw, db
    if dw is not None:
        partials = torch.empty((2, plan.splits, plan.channels), dtype=stats, device=x.device)
    drawn = {"noise_ptr": noise, "seed_ptr": seed}
    sweep = plan if noise is None else plans.batch_norm_drawing(plan, device)
    with on(x):
        # In training dx wants a second sweep, which then writes dz too.
        dx_here, dz_here = (dx, dz) if evaluating or dx is None else (None, None)
        outputs = (partials, dx_here, dz_here)
        if any(t is not None for t in outputs):
            _launch(
                _batch_norm_reduce_kernel,
                sweep,
                *outputs,
                *tensors,
                eps=eps,
                EVAL=evaluating,
                STD=std,
                **drawn,
                **relus,
            )
        if partials is not None:
            sum_partials(partials, (dw, db), plans.merge(plan.splits, plan.channels, device))
        if need_dx and not evaluating:
            outputs, sums = (dx, dz), (dw, db, None)
            constants = {"EVICT": plan.evict, **drawn, **relus}
            _launch(_batch_norm_input_gradient_kernel, sweep, *outputs, *tensors, *sums, **constants)
    return dx, dw, db
