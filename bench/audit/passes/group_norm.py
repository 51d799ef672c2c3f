"""Group norm, and instance norm, which has a channel a group."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.audit.passes import EPS, MOMENTUM, PLAIN, Declared, Pass, Passes, Shaped, Tensors, sizes_of, statistics_dtype
from bench.audit.passes.batch_norm import PASSES as BATCH_NORM
from bench.cases.operators.group_norm import usual_groups
from normlib.kernels import plan as plans
from normlib.kernels.group_norm import instance as instance_norm
from normlib.kernels.group_norm import launch as group_norm
from normlib.kernels.group_norm import plan as group_norm_plan
from normlib.kernels.group_norm import traffic as group_norm_traffic
from normlib.kernels.group_norm.plan import GroupNormPlan
from normlib.kernels.host import is_channels_last
from normlib.kernels.plan import Device


def _group_norm(groups: int | str | None = None, instances: bool = False) -> Passes:
    """`instances`: with a channel a group, float32 parameters and running statistics; groups None: the usual."""
    running = ("running_mean", "running_var")

    def groups_of(x: Tensor) -> int:
        return x.shape[1] if instances else int(groups or usual_groups(x.shape[1]))

    def vectors(shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Shaped]:
        (n, c), statistics = shape[:2], statistics_dtype(dtype)
        each = n * (c if instances else int(groups or usual_groups(c)))
        parameters = dict.fromkeys(("weight", "bias", "dw", "db"), ((c,), statistics if instances else dtype))
        saved: dict[str, Shaped] = {"mean": ((2, each), statistics), "rstd": ((each,), statistics)}
        return {**parameters, **saved, **(dict.fromkeys(running, ((c,), statistics)) if instances else {})}

    def plan_of(t: Tensors, device: Device) -> GroupNormPlan:
        x = t["x"]
        last = is_channels_last(x)
        return group_norm_plan.group_norm(tuple(x.shape), groups_of(x), last, x.element_size(), device)

    def kind(plan: GroupNormPlan) -> str:
        return "one launch" if plan.rows else "streaming"

    def forward(t: Tensors, device: Device) -> object:
        x, parameters = t["x"], (t.get("weight"), t.get("bias"))
        if instances:
            mean, var = (t.get(name) for name in running)
            return instance_norm.instance_norm_forward(x, *parameters, mean, var, MOMENTUM, EPS, device)
        return group_norm.group_norm_forward(x, groups_of(x), *parameters, EPS, device)

    def declare_forward(t: Tensors, device: Device) -> Declared:
        plan, sizes = plan_of(t, device), sizes_of(t)
        if running[0] not in t:
            return Declared(kind(plan), plan, group_norm_traffic.forward(plan, sizes))
        sizes["var"] = sizes["rstd"]
        moved = group_norm_traffic.running(
            plans.merge(plan.batch, plan.channels, device), plan.batch, plan.channels, sizes
        )
        return Declared(kind(plan), plan, (*group_norm_traffic.forward(plan, sizes), moved))

    def backward(t: Tensors, device: Device) -> object:
        x, (dw, db) = t["x"], (t[name].dtype if name in t else None for name in ("dw", "db"))
        given = (t["dy"], x, groups_of(x), t["mean"], t["rstd"], t.get("weight"))
        return group_norm.group_norm_backward(*given, dw, db, "dx" in t, device)

    def declare_backward(t: Tensors, device: Device) -> Declared:
        plan = plan_of(t, device)
        merge = plans.merge(plan.parts, plan.channels, device)
        return Declared(kind(plan), plan, group_norm_traffic.backward(plan, merge, sizes_of(t)))

    modes = {"fwd": Pass(forward, declare_forward), "bwd": Pass(backward, declare_backward)}
    if instances:  # evaluation is batch norm's
        evaluation = BATCH_NORM["batch_norm"].modes
        return Passes(PLAIN, vectors, {**modes, "eval": evaluation["eval"], "eval_bwd": evaluation["eval_bwd"]})
    return Passes(PLAIN, vectors, modes, _group_norm)


PASSES = {"group_norm": _group_norm(), "instance_norm": _group_norm(instances=True)}
