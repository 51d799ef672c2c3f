"""QuACK's kernels in CuTe DSL, with the launch configurations of its heuristics (its autotuner is another entry point).

    rmsnorm(x, weight=None, bias=None, residual=None, out_dtype=None, residual_dtype=None, eps=1e-6, prenorm=False,
            weight_offset=0.0)
    layernorm_fwd(x, weight, bias=None, eps=1e-6, return_rstd=False, return_mean=False)
    layernorm_bwd(x, weight, dout, rstd, mean, has_bias=True)

`prenorm` gives x + residual back beside y, which is the norm of that sum before it is rounded: in 16 bits not the norm
of what is handed on, which the operator asks for. Layer norm has no autograd; its two passes are called by themselves.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from bench.cases.case import Case
from bench.cases.operators import Inputs
from bench.measure.providers import Outputs
from bench.measure.providers._peer import Function, Native, Peer

# Its kernels copy asynchronously to shared memory, which begins with Ampere.
_LEAST_CAPABILITY = (8, 0)
_RMS_NORM = ("quack.rmsnorm:rmsnorm",)


def _layer_norm(case: Case, layernorm_fwd: Function, layernorm_bwd: Function) -> tuple[Function, Function]:
    def forward(t: Inputs) -> tuple[Outputs, Outputs]:
        y, rstd, mean = layernorm_fwd(t["x"], t["weight"], t["bias"], case.eps, return_rstd=True, return_mean=True)
        return {"y": y, "mean": mean, "rstd": rstd}, {"rstd": rstd, "mean": mean}

    def backward(t: Inputs, saved: Outputs) -> Outputs:
        gradients = layernorm_bwd(t["x"], t["weight"], t["dy"], **saved, has_bias=True)
        return dict(zip(("dx", "dw", "db"), gradients, strict=True))

    return forward, backward


def _half_precision(case: Case) -> str | None:
    """layernorm_fwd asserts float32 parameters, and a row norm's are in x's dtype."""
    if case.dtype == "fp32":
        return None
    return "layernorm_fwd takes float32 parameters only, and here they are in x's dtype"


class Quack(Peer):
    """Kernels by Wentao Guo, Ted Zadouri and Tri Dao, which PyTorch 2.13 vendors an older copy of."""

    name = "quack"
    compiles = True
    package = "quack-kernels"
    source = "pip install quack-kernels"
    modules = ("quack", "cutlass")
    natives: ClassVar = {
        "layer_norm": Native(
            ("quack.rmsnorm:layernorm_fwd", "quack.rmsnorm:layernorm_bwd"), _layer_norm, refusal=_half_precision
        ),
        "rms_norm": Native(
            _RMS_NORM,
            lambda case, rmsnorm: lambda x, weight: rmsnorm(x, weight, eps=case.eps),
        ),
        "rms_norm_add": Native(
            _RMS_NORM,
            lambda case, rmsnorm: (
                lambda x, residual, weight: rmsnorm(x, weight, residual=residual, eps=case.eps, prenorm=True)
            ),
            "prenorm=True",
        ),
    }

    def unavailable(self, device: torch.device) -> str | None:
        """CuTe DSL compiles for NVIDIA's GPUs only."""
        missing = super().unavailable(device)
        if missing:
            return missing
        if torch.version.hip is not None:
            return f"{self.package} needs an NVIDIA GPU"
        if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
            return f"{self.package} needs compute capability {'.'.join(map(str, _LEAST_CAPABILITY))} or more"
        return None


PROVIDERS = (Quack(),)
