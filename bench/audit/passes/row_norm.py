"""Layer norm and RMS norm, with a residual, and of a part of the row."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

import torch

from bench.audit.passes import EPS, PLAIN, Declared, Pass, Passes, Shaped, Tensors, sizes_of, statistics_dtype
from bench.audit.passes._rows import kind
from normlib.kernels import plan as plans
from normlib.kernels.plan import Device
from normlib.kernels.row_norm import launch as row_norm
from normlib.kernels.row_norm import plan as row_plan
from normlib.kernels.row_norm import traffic as row_norm_traffic
from normlib.rms_norm import PARTIAL


def _row_norm(centred: bool, add: bool = False, partial: float = 1.0) -> Passes:
    def vectors(shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Shaped]:
        m, n = shape
        found: dict[str, Shaped] = {
            "weight": ((n,), dtype),
            "dw": ((n,), dtype),
            "rstd": ((m,), statistics_dtype(dtype)),
        }
        if centred:
            found |= {"bias": ((n,), dtype), "db": ((n,), dtype), "mean": ((2, m), statistics_dtype(dtype))}
        return found

    def partial_n(t: Tensors) -> int:
        return ceil(partial * t["x"].shape[1])

    def forward(t: Tensors, device: Device) -> object:
        parameters, stream = (t.get("weight"), t.get("bias")), (t.get("residual"), t.get("z"))
        return row_norm.forward(
            t["x"], *parameters, EPS, centred, t["x"].shape[1], device, *stream, partial_n=partial_n(t)
        )

    def declare_forward(t: Tensors, device: Device) -> Declared:
        m, n = t["x"].shape
        plan = row_plan.row_forward(n, t["x"].element_size(), device, tensors=4 if "residual" in t else 2)
        return Declared(kind(plan), plan, row_norm_traffic.forward(plan, m, n, sizes_of(t), partial_n(t)))

    def backward(t: Tensors, device: Device) -> object:
        x, mean = t["x"], t.get("mean", t["rstd"])
        dw, db = (t[name].dtype if name in t else None for name in ("dw", "db"))
        given = (t["dy"], x, mean, t["rstd"], t.get("weight"), centred, x.shape[1], dw, db, "dx" in t, device)
        return row_norm.backward(*given, t.get("dz"), partial_n=partial_n(t))

    def declare_backward(t: Tensors, device: Device) -> Declared:
        m, n = t["x"].shape
        whole = "dx" in t and ("dw" in t or "db" in t)
        plan = row_plan.row_backward(m, n, t["x"].element_size(), device, whole)
        merge = plans.merge(plan.programs, n, device)
        return Declared(
            "slices, barrier" if plan.slices else kind(plan.rows),
            plan,
            row_norm_traffic.backward(plan, merge, m, n, sizes_of(t)),
        )

    activations = (*PLAIN, *(("residual", "z", "dz") if add else ()))
    return Passes(
        activations, vectors, {"fwd": Pass(forward, declare_forward), "bwd": Pass(backward, declare_backward)}
    )


PASSES = {
    "layer_norm": _row_norm(centred=True),
    "layer_norm_add": _row_norm(centred=True, add=True),
    "partial_rms_norm": _row_norm(centred=False, partial=PARTIAL),
    "rms_norm": _row_norm(centred=False),
    "rms_norm_add": _row_norm(centred=False, add=True),
}
