"""Weight norm."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bench.audit.passes import PLAIN, Declared, Pass, Passes, Shaped, Tensors, sizes_of, statistics_dtype
from bench.audit.passes._rows import kind
from normlib.kernels import weight_norm, weight_norm_traffic
from normlib.kernels.plan import Device
from normlib.kernels.row_norm import plan as row_plan


def _weight_norm() -> Passes:
    def vectors(shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Shaped]:
        m = shape[0]
        return {"weight": ((m,), dtype), "dw": ((m,), dtype), "norm": ((2, m), statistics_dtype(dtype))}

    def forward(t: Tensors, device: Device) -> object:
        return weight_norm.forward(t["x"], t["weight"], device)

    def declare_forward(t: Tensors, device: Device) -> Declared:
        m, n = t["x"].shape
        plan = row_plan.row_forward(n, t["x"].element_size(), device)
        return Declared(kind(plan), plan, weight_norm_traffic.forward(plan, m, n, sizes_of(t)))

    def backward(t: Tensors, device: Device) -> object:
        return weight_norm.backward(t["dy"], t["x"], t["norm"], t["weight"], "dx" in t, "dw" in t, device)

    def declare_backward(t: Tensors, device: Device) -> Declared:
        m, n = t["x"].shape
        plan = row_plan.row_backward(m, n, t["x"].element_size(), device, whole=False).rows
        return Declared(kind(plan), plan, weight_norm_traffic.backward(plan, m, n, sizes_of(t)))

    return Passes(PLAIN, vectors, {"fwd": Pass(forward, declare_forward), "bwd": Pass(backward, declare_backward)})


PASSES = {"weight_norm": _weight_norm()}
