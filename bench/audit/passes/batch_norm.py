"""Batch norm, with a ReLU behind it, and with a residual before that."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.audit.passes import EPS, MOMENTUM, PLAIN, Declared, Pass, Passes, Shaped, Tensors, sizes_of, statistics_dtype
from bench.audit.passes._channels import once_kind, planned
from normlib.kernels.batch_norm import launch as batch_norm
from normlib.kernels.batch_norm import one_launch_plan
from normlib.kernels.batch_norm import traffic as batch_norm_traffic
from normlib.kernels.plan import Device


def _batch_norm(relu: bool = False, add: bool = False) -> Passes:
    """`relu`: one behind the norm; `add`: of the norm and a residual, whose gradient is dz."""
    running = ("running_mean", "running_var")
    per_channel = ("weight", "bias", *running, "rstd", "dw", "db")

    def vectors(shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Shaped]:
        c, statistics = shape[1], statistics_dtype(dtype)
        return {"mean": ((2, c), statistics), **dict.fromkeys(per_channel, ((c,), statistics))}

    def signs(t: Tensors, device: Device) -> Tensor | None:
        return batch_norm.empty_signs(t["x"], device) if add else None

    def sizes(t: Tensors) -> dict[str, int]:
        return {**sizes_of(t), **({"signs": 1} if add else {})}

    def forward(t: Tensors, device: Device) -> object:
        mean, var = (t.get(name) for name in running)
        given = (t["x"], t.get("weight"), t.get("bias"), mean, var, MOMENTUM, EPS, device)
        return batch_norm.batch_norm_forward(*given, t.get("residual"), signs(t, device), relu=relu)

    def declare_forward(t: Tensors, device: Device) -> Declared:
        plan, merge = planned(t, device)
        once = one_launch_plan.batch_norm_once(plan, t["x"].element_size(), 1, device, relu, add)
        if once is not None:
            return Declared(once_kind(once), once.tiled, batch_norm_traffic.forward_once(once, sizes(t)), once)
        return Declared("streaming", plan, batch_norm_traffic.forward(plan, merge, sizes(t)))

    def evaluate(t: Tensors, device: Device) -> object:
        mean, var = (t[name] for name in running)
        # With a residual its signs are kept for backward, in evaluation too.
        given = (t["x"], t.get("weight"), t.get("bias"), mean, var, EPS, device)
        return batch_norm.batch_norm_eval_forward(*given, t.get("residual"), signs(t, device), relu=relu)

    def declare_evaluate(t: Tensors, device: Device) -> Declared:
        plan, _ = planned(t, device)
        return Declared("one sweep", plan, batch_norm_traffic.eval_forward(plan, sizes(t)))

    def backward(evaluating: bool) -> Pass:
        names = running if evaluating else ("mean", "rstd")

        def run(t: Tensors, device: Device) -> object:
            mean, rstd = (t[name] for name in names)
            needs = ("dx" in t, "dw" in t)
            given = (t["dy"], t["x"], mean, rstd, t.get("weight"), EPS, evaluating, *needs, device, t.get("bias"))
            return batch_norm.batch_norm_backward(*given, signs(t, device), t.get("dz"), relu=relu)

        def declare(t: Tensors, device: Device) -> Declared:
            plan, merge = planned(t, device)
            once = (
                None
                if evaluating
                else one_launch_plan.batch_norm_once(plan, t["x"].element_size(), 2, device, relu, add)
            )
            if "dx" in t and once is not None:
                launches = batch_norm_traffic.backward_once(once, sizes(t), relu)
                return Declared(once_kind(once), once.tiled, launches, once)
            plan = once.tiled if once is not None and add else plan
            launches = batch_norm_traffic.backward(plan, merge, sizes(t), evaluating, relu)
            return Declared("one sweep" if evaluating else "streaming", plan, launches)

        return Pass(run, declare, frozenset(names))

    return Passes(
        (*PLAIN, *(("residual", "dz") if add else ())),
        vectors,
        {
            "fwd": Pass(forward, declare_forward),
            "bwd": backward(evaluating=False),
            "eval": Pass(evaluate, declare_evaluate, frozenset(running)),
            "eval_bwd": backward(evaluating=True),
        },
    )


PASSES = {
    "batch_norm": _batch_norm(),
    "batch_norm_add_relu": _batch_norm(relu=True, add=True),
    "batch_norm_relu": _batch_norm(relu=True),
}
