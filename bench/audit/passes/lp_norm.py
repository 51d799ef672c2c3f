"""The l_p norms."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import torch

from bench.audit.passes import EPS, MOMENTUM, PLAIN, Declared, Pass, Passes, Shaped, Tensors, sizes_of, statistics_dtype
from bench.audit.passes._channels import planned
from normlib.kernels.batch_norm import lp as lp_norm
from normlib.kernels.batch_norm import lp_traffic as lp_norm_traffic
from normlib.kernels.plan import Device


def _lp_norm(p: str = "2") -> Passes:
    order, running = float(p), ("running_mean", "running_norm")
    per_channel = ("weight", "bias", *running, "rstd", "dw", "db")

    def vectors(shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Shaped]:
        c, statistics = shape[1], statistics_dtype(dtype)
        pairs = ("mean", "peak") if order == inf else ("mean",)
        return {**dict.fromkeys(pairs, ((2, c), statistics)), **dict.fromkeys(per_channel, ((c,), statistics))}

    def forward(t: Tensors, device: Device) -> object:
        weight, bias, mean, norm = (t.get(name) for name in ("weight", "bias", *running))
        return lp_norm.lp_norm_forward(t["x"], weight, bias, mean, norm, order, MOMENTUM, EPS, device)

    def declare_forward(t: Tensors, device: Device) -> Declared:
        plan, merge = planned(t, device)
        return Declared("streaming", plan, lp_norm_traffic.forward(plan, merge, sizes_of(t)))

    def evaluate(t: Tensors, device: Device) -> object:
        mean, norm = (t[name] for name in running)
        return lp_norm.lp_norm_eval_forward(t["x"], t.get("weight"), t.get("bias"), mean, norm, order, EPS, device)

    def declare_evaluate(t: Tensors, device: Device) -> Declared:
        plan, _ = planned(t, device)
        return Declared("one sweep", plan, lp_norm_traffic.eval_forward(plan, sizes_of(t)))

    def backward(evaluating: bool) -> Pass:
        names = running if evaluating else ("mean", "rstd")

        def run(t: Tensors, device: Device) -> object:
            mean, rstd = (t[name] for name in names)
            peak = None if evaluating else t.get("peak")
            given = (t["dy"], t["x"], mean, rstd, peak, t.get("weight"))
            return lp_norm.lp_norm_backward(*given, order, EPS, evaluating, "dx" in t, "dw" in t, device)

        def declare(t: Tensors, device: Device) -> Declared:
            plan, merge = planned(t, device)
            kind = "one sweep" if evaluating else "streaming"
            return Declared(kind, plan, lp_norm_traffic.backward(plan, merge, sizes_of(t), evaluating))

        return Pass(run, declare, frozenset(names))

    modes = {
        "fwd": Pass(forward, declare_forward),
        "bwd": backward(evaluating=False),
        "eval": Pass(evaluate, declare_evaluate, frozenset(running)),
        "eval_bwd": backward(evaluating=True),
    }
    return Passes(PLAIN, vectors, modes, of=_lp_norm)


PASSES = {"lp_norm": _lp_norm()}
