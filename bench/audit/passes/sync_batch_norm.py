"""Synchronized batch norm, as one rank of several launches it: the others' messages are there already."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bench.audit.passes import EPS, MOMENTUM, PLAIN, Declared, Pass, Passes, Shaped, Tensors, sizes_of, statistics_dtype
from bench.audit.passes._channels import planned
from bench.audit.synchronized import RANKS
from normlib.kernels import plan as plans
from normlib.kernels.batch_norm import sync as sync_batch_norm
from normlib.kernels.batch_norm import sync_traffic as sync_batch_norm_traffic
from normlib.kernels.plan import Device

_APART = "all of x is swept before the other ranks' messages come"


def _sync_batch_norm(ranks: int = RANKS[0]) -> Passes:
    """`messages` and `sums` are those that all ranks gather, forward and backward."""
    per_channel = ("weight", "bias", "running_mean", "running_var", "rstd")

    def vectors(shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Shaped]:
        c, statistics = shape[1], statistics_dtype(dtype)
        gathered = {"messages": (ranks, 3 * c + 2), "sums": (ranks, 2, c), "count": (1,), "mean": (2, c)}
        found = {**gathered, **dict.fromkeys(per_channel, (c,))}
        return {name: (size, statistics) for name, size in found.items()}

    def forward(t: Tensors, device: Device) -> object:
        running = (t.get("running_mean"), t.get("running_var"))
        sync_batch_norm.moments(t["x"], device)
        mean, rstd, _ = sync_batch_norm.merge_messages(t["messages"], *running, MOMENTUM, EPS, device)
        return sync_batch_norm.normalize(t["x"], mean, rstd, t.get("weight"), t.get("bias"), device)

    def declare_forward(t: Tensors, device: Device) -> Declared:
        plan, merge = planned(t, device)
        merge_ranks = plans.merge_ranks(ranks, plan.channels, device)
        launches = sync_batch_norm_traffic.forward(plan, merge, ranks, merge_ranks, sizes_of(t))
        return Declared("streaming", plan, launches, apart=_APART)

    def backward(t: Tensors, device: Device) -> object:
        share = (t["dy"], t["x"], t["mean"], t["rstd"])
        sums = sync_batch_norm.sums(*share, device)
        if "dx" not in t:
            return sums
        total = sync_batch_norm.add_sums(t["sums"], device)
        return sync_batch_norm.input_gradient(*share, t.get("weight"), total, t["count"], device)

    def declare_backward(t: Tensors, device: Device) -> Declared:
        plan, merge = planned(t, device)
        merge_ranks = plans.merge(ranks, 2 * plan.channels, device)
        launches = sync_batch_norm_traffic.backward(plan, merge, ranks, merge_ranks, sizes_of(t))
        return Declared("streaming", plan, launches, apart=_APART)

    modes = {"fwd": Pass(forward, declare_forward), "bwd": Pass(backward, declare_backward)}
    return Passes(PLAIN, vectors, modes, of=_sync_batch_norm)


PASSES = {"sync_batch_norm": _sync_batch_norm()}
