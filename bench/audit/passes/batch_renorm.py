"""Batch renormalization."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from bench.audit.passes import EPS, MOMENTUM, PLAIN, Declared, Pass, Passes, Shaped, Tensors, sizes_of, statistics_dtype
from bench.audit.passes._channels import once_kind, planned
from normlib.kernels import plan as plans
from normlib.kernels.batch_norm import launch as batch_norm
from normlib.kernels.batch_norm import one_launch_plan
from normlib.kernels.batch_norm import renorm as batch_renorm
from normlib.kernels.batch_norm import renorm_traffic as batch_renorm_traffic
from normlib.kernels.plan import Device


def _batch_renorm() -> Passes:
    running = ("running_mean", "running_std")
    per_channel = ("weight", "bias", *running, "rstd", "dw", "db")

    def vectors(shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Shaped]:
        c, statistics = shape[1], statistics_dtype(dtype)
        wide: dict[str, Shaped] = {"mean": ((2, c), statistics), "renorm": ((4, c), statistics)}
        return {**wide, **dict.fromkeys(per_channel, ((c,), statistics))}

    def forward(t: Tensors, device: Device) -> object:
        buffers = (t["running_mean"], t["running_std"])
        given = (t["x"], t.get("weight"), t.get("bias"), *buffers, MOMENTUM, EPS)
        return batch_renorm.batch_renorm_forward(*given, rmax=3.0, dmax=5.0, device=device)

    def declare_forward(t: Tensors, device: Device) -> Declared:
        plan, merge = planned(t, device)
        return Declared("streaming", plan, batch_renorm_traffic.forward(plan, merge, sizes_of(t)))

    def backward(t: Tensors, device: Device) -> object:
        given = (t["dy"], t["x"], t["mean"], t["rstd"], t["renorm"], "dx" in t, "dw" in t)
        return batch_renorm.batch_renorm_backward(*given, device)

    def declare_backward(t: Tensors, device: Device) -> Declared:
        plan, merge = planned(t, device)
        once = one_launch_plan.batch_norm_once(plan, t["x"].element_size(), 2, device) if "dx" in t else None
        columns = plans.merge(1, plan.channels, device)
        launches = batch_renorm_traffic.backward(plan, once, merge, columns, sizes_of(t))
        if once is None:
            return Declared("streaming", plan, launches)
        return Declared(once_kind(once), once.tiled, launches, once)

    def evaluate(t: Tensors, device: Device) -> object:
        buffers = (t["running_mean"], t["running_std"])
        given = (t["x"], t.get("weight"), t.get("bias"), *buffers, EPS, device)
        return batch_norm.batch_norm_eval_forward(*given, std=True)

    def evaluate_backward(t: Tensors, device: Device) -> object:
        buffers = (t["running_mean"], t["running_std"])
        given = (t["dy"], t["x"], *buffers, t.get("weight"), EPS, True, "dx" in t, "dw" in t, device)
        return batch_norm.batch_norm_backward(*given, std=True)

    def declare_evaluation(backward: bool) -> Callable[[Tensors, Device], Declared]:
        def declare(t: Tensors, device: Device) -> Declared:
            plan, merge = planned(t, device)
            return Declared("one sweep", plan, batch_renorm_traffic.evaluation(plan, merge, sizes_of(t), backward))

        return declare

    return Passes(
        PLAIN,
        vectors,
        {
            "fwd": Pass(forward, declare_forward, frozenset(running)),
            "bwd": Pass(backward, declare_backward),
            "eval": Pass(evaluate, declare_evaluation(backward=False), frozenset(running)),
            "eval_bwd": Pass(evaluate_backward, declare_evaluation(backward=True), frozenset(running)),
        },
    )


PASSES = {"batch_renorm": _batch_renorm()}
