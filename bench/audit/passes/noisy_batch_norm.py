"""Noisy batch norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from bench.audit.passes import EPS, MOMENTUM, PLAIN, Declared, Pass, Passes, Shaped, Tensors, sizes_of, statistics_dtype
from bench.audit.passes._channels import planned
from bench.audit.passes.batch_norm import PASSES as BATCH_NORM
from normlib.kernels.batch_norm import launch as batch_norm
from normlib.kernels.batch_norm import noisy as noisy_batch_norm
from normlib.kernels.batch_norm import noisy_traffic as noisy_batch_norm_traffic
from normlib.kernels.plan import Device
from normlib.kernels.traffic import Traffic


def _noisy_batch_norm() -> Passes:
    plain = BATCH_NORM["batch_norm"]

    def vectors(shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Shaped]:
        noise = {"noise": ((4, shape[1]), statistics_dtype(dtype)), "seed": ((), torch.int64)}
        return {**plain.vectors(shape, dtype), **noise}

    def forward(t: Tensors, device: Device) -> object:
        vectors = (t.get("weight"), t.get("bias"), t.get("running_mean"), t.get("running_var"))
        drawn = (t["seed"], True, [0.5, 1.25, 0.1, 0.1], device)
        return noisy_batch_norm.noisy_batch_norm_forward(t["x"], *vectors, MOMENTUM, EPS, *drawn)

    def backward(t: Tensors, device: Device) -> object:
        given = (t["dy"], t["x"], t["mean"], t["rstd"], t.get("weight"), EPS, False, "dx" in t, "dw" in t, device)
        return batch_norm.batch_norm_backward(*given, noise=t["noise"], seed=t["seed"])

    def declare(traffic: Callable[..., tuple[Traffic, ...]]) -> Callable[[Tensors, Device], Declared]:
        def declared(t: Tensors, device: Device) -> Declared:
            plan, merge = planned(t, device)
            return Declared("streaming", plan, traffic(plan, merge, sizes_of(t)))

        return declared

    return Passes(
        PLAIN,
        vectors,
        {
            **plain.modes,
            "fwd": Pass(forward, declare(noisy_batch_norm_traffic.forward)),
            "bwd": Pass(backward, declare(noisy_batch_norm_traffic.backward)),
        },
    )


PASSES = {"noisy_batch_norm": _noisy_batch_norm()}
