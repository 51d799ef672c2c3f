"""Batch normalization whose statistics are of the batches of many processes, by batch norm's sweeps.

Each process has a share of the batch, of any size and perhaps empty, with moments (count, mean, M2) of its own. What is
gathered is one message of each process, in rank order, and every process merges them by Chan's formula (reduction.py):
the same values in the same order, so the same bits on each. n is the sum of the counts; the formulas are batch norm's:

    db = sum(dy)       dw = sum(dy x_hat)       of this process's share: gradients are for the training loop to add
    dx = weight rstd (dy - sum(db) / n - x_hat sum(dw) / n)       sums over processes

Message, in the statistics' dtype: forward 3 C + 2, the means as pairs of floats, M2, and the count as a pair, which is
exact up to 2^48; backward 2 C. Units of one activation moved by a process: forward 3, backward 5, as batch norm,
whose sweeps these are. What is gathered is merged in one more launch each way.
"""

from fractions import Fraction

import torch
import triton
import triton.language as tl
from torch import Tensor

from normlib.kernels import plan as plans
from normlib.kernels.batch_norm.statistics import finish_statistics, load_running, merge_splits
from normlib.kernels.batch_norm.streaming import (
    _batch_norm_input_gradient_kernel,
    _batch_norm_reduce_kernel,
)
from normlib.kernels.batch_norm.sweeps import INPUT_GRADIENT, SUMS, launch_merge, launch_sweep, partial_moments, planned
from normlib.kernels.batch_norm.sweeps import normalize as normalize_share
from normlib.kernels.batch_norm.tiles import BATCH, store_planes
from normlib.kernels.host import counters, device_of, float_pair, like, on, statistics_dtype
from normlib.kernels.numerics import accumulator, load
from normlib.kernels.plan import Device
from normlib.kernels.reduction import merge_all_moments, sum_partials
from normlib.kernels.traffic import Moves, launch


@triton.jit(do_not_specialize=BATCH)
def _sync_batch_norm_message_kernel(
    message_ptr,  # (3 C + 2,): mean, low, M2 of each channel, count as high and low
    partials_ptr,  # (3, splits, C)
    C,
    S,
    tiles,
    splits,
    count,
    count_low,
    BLOCK_S,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(partials_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_N
    mean, low, m2 = merge_splits(partials_ptr, c0, C, S, tiles, splits, BLOCK_N, BLOCK_S, BLOCK_P, ACC)
    store_planes(message_ptr, tl.program_id(1), 1, c0, C, mean, low, m2, BLOCK_N)
    if c0 == 0:
        counts = message_ptr + 3 * tl.cast(C, tl.int64)
        tl.store(counts, count)
        tl.store(counts + 1, count_low)


@triton.jit(do_not_specialize=("ranks",))
def _sync_batch_norm_merge_kernel(
    mean_ptr,  # (2, C): mean, low
    rstd_ptr,  # (C,)
    count_ptr,  # (1,): the elements of a channel over all processes
    running_mean_ptr,  # (C,), updated in place, or None
    running_var_ptr,  # (C,), updated in place, or None
    messages_ptr,  # (ranks, 3 C + 2)
    C,
    ranks,
    eps,
    eps_low,
    momentum,
    momentum_low,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(messages_ptr.dtype)
    c0 = tl.program_id(0) * BLOCK_N
    c = c0 + tl.arange(0, BLOCK_N)[:, None]
    rank = tl.arange(0, BLOCK_P)[None, :]
    plane = tl.cast(C, tl.int64)
    message = messages_ptr + rank.to(tl.int64) * (3 * plane + 2)
    mask, last = (rank < ranks) & (c < C), message + 3 * plane
    counts = load(last, rank < ranks, tl.float64) + load(last + 1, rank < ranks, tl.float64)
    means = load(message + c, mask, ACC)
    lows = load(message + plane + c, mask, ACC)
    m2s = load(message + 2 * plane + c, mask, ACC)
    n = tl.sum(counts, 1, keep_dims=True)
    # An empty share has a mean of 0, which the others' are not to be taken about.
    first = tl.min(tl.where(counts > 0.0, rank, BLOCK_P), 1, keep_dims=True)
    first_mean = tl.sum(tl.where(rank == first, means, 0.0), 1, keep_dims=True)
    # Where every share is empty, nothing is to be normalized, and the running buffers stay: zeros with no momentum.
    some = n > 0.0
    divisor = tl.where(some, n, 2.0)
    mean, low, m2 = merge_all_moments(counts, means, lows, m2s, counts > 0.0, divisor, first_mean, 1)
    old_mean, old_var = load_running(running_mean_ptr, running_var_ptr, c0, C, BLOCK_N)
    finish_statistics(
        mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, old_mean, old_var, mean, low, m2, divisor.to(ACC),
        c0, C, eps, eps_low, tl.where(some, momentum, 0.0), tl.where(some, momentum_low, 0.0), BLOCK_N, ACC
    )  # fmt: skip
    if c0 == 0:
        tl.store(count_ptr + tl.zeros([1, 1], tl.int32), n.to(ACC))


# ---------------------------------------------------------------------------------------------------------- launchers


def moments(x: Tensor, device: Device | None = None) -> Tensor:
    """Returns the message (3 C + 2,) of this process's x (N, C, *), which may be empty, in the statistics' dtype."""
    x, device, plan = planned(x, device)
    message = x.new_empty(3 * plan.channels + 2, dtype=statistics_dtype(x))
    if x.numel() == 0:
        return message.zero_()
    with on(x):
        tensors = (message, partial_moments(x, plan))
        launch_merge(_sync_batch_norm_message_kernel, plan, device, *tensors, scalars=(float(plan.count),))
    return message


def merge_messages(
    messages: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    device: Device | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (mean (2, C), rstd (C,), count (1,)) of all processes' elements, from their messages (ranks, 3 C + 2).

    Running buffers, if given, are updated in place; by nothing where there is no element.
    """
    ranks, channels = messages.shape[0], (messages.shape[1] - 2) // 3
    mean, rstd, count = (messages.new_empty(shape) for shape in ((2, channels), (channels,), (1,)))
    plan = plans.merge_ranks(ranks, channels, device or device_of(messages))
    programs = plans.cdiv(channels, plan.block_n)
    with on(messages):
        launch(
            *(_sync_batch_norm_merge_kernel, (programs,)),
            *(mean, rstd, count, running_mean, running_var, messages, channels, ranks),
            *(*float_pair(eps), *float_pair(momentum)),
            BLOCK_P=plan.block_p,
            BLOCK_N=plan.block_n,
            **plan.options,
            moves=lambda: Moves(
                plan,
                # Every program loads the counts, which are pairs.
                {
                    "messages": Fraction(3 * channels + 2 * programs, 3 * channels + 2),
                    "running_mean": 1,
                    "running_var": 1,
                },
                ("mean", "rstd", "count", "running_mean", "running_var"),
            ),
        )
    return mean, rstd, count


def normalize(
    x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None, device: Device | None = None
) -> Tensor:
    """Returns y of this process's x (N, C, *)."""
    x, _, plan = planned(x, device)
    y = torch.empty_like(x)
    if x.numel():
        with on(x):
            normalize_share(y, x, mean, rstd, weight, bias, plan)
    return y


def sums(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, device: Device | None = None) -> Tensor:
    """Returns (2, C), sum(dy x_hat) and sum(dy) of this process's share, in the statistics' dtype."""
    x, device, plan = planned(x, device)
    found = x.new_empty((2, plan.channels), dtype=statistics_dtype(x))
    if x.numel() == 0:
        return found.zero_()
    partials = found.new_empty((2, plan.splits, plan.channels))
    constants = {"EVAL": False, "RELU": False, "PRE_RELU": False, "BLOCK_P": plan.sum_block_p}
    with on(x):
        found_by = (*found, partials, counters(plan.groups, x.device))
        tensors = (*found_by, None, None, like(x, dy), None, x, mean, rstd, None, None)
        launch_sweep(_batch_norm_reduce_kernel, plan, *tensors, sweep=SUMS, scalars=(0.0,), **constants)
    return found


def add_sums(messages: Tensor, device: Device | None = None) -> Tensor:
    """Returns (2, C) of all processes, from their sums (ranks, 2, C), added in rank order."""
    ranks, _, channels = messages.shape
    total = messages.new_empty((2, channels))
    with on(messages):
        partials = messages.view(1, ranks, 2 * channels)
        sum_partials(partials, (total,), plans.merge(ranks, 2 * channels, device or device_of(messages)))
    return total


def input_gradient(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    total: Tensor,
    count: Tensor,
    device: Device | None = None,
) -> Tensor:
    """Returns dx of this process's x (N, C, *), from the sums (2, C) and the count (1,) of all processes."""
    x, _, plan = planned(x, device)
    dx = torch.empty_like(x)
    if x.numel():
        constants = {"RELU": False, "PRE_RELU": False, "EVICT": plan.evict}
        with on(x):
            tensors = (dx, None, like(x, dy), None, x, mean, rstd, weight, None, total[0], total[1], count)
            launch_sweep(_batch_norm_input_gradient_kernel, plan, *tensors, sweep=INPUT_GRADIENT, **constants)
    return dx
