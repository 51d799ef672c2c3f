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
from bench.measure.providers import Outputs, Runnable, _without_autograd
from bench.measure.providers._pairs import Forward, runnable
from bench.measure.providers._peer import Function, Peer

# Its kernels copy asynchronously to shared memory, which begins with Ampere.
_LEAST_CAPABILITY = (8, 0)


class Quack(Peer):
    """Kernels by Wentao Guo, Ted Zadouri and Tri Dao, which PyTorch 2.13 vendors an older copy of."""

    name = "quack"
    package = "quack-kernels"
    source = "pip install quack-kernels"
    modules = ("quack", "cutlass")
    entry_points: ClassVar = {
        "layer_norm": ("quack.rmsnorm:layernorm_fwd", "quack.rmsnorm:layernorm_bwd"),
        "rms_norm": ("quack.rmsnorm:rmsnorm",),
        "rms_norm_add": ("quack.rmsnorm:rmsnorm",),
    }
    settings: ClassVar = {"rms_norm_add": "prenorm=True"}

    def unavailable(self, device: torch.device) -> str | None:
        """CuTe DSL compiles for NVIDIA's GPUs alone."""
        missing = super().unavailable(device)
        if missing:
            return missing
        if torch.version.hip is not None:
            return f"{self.package} needs an NVIDIA GPU"
        if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
            return f"{self.package} needs compute capability {'.'.join(map(str, _LEAST_CAPABILITY))} or more"
        return None

    def refusal(self, case: Case) -> str | None:
        """layernorm_fwd asserts float32 parameters, and a row norm's are in x's dtype."""
        if case.op == "layer_norm" and case.dtype != "fp32":
            return "layernorm_fwd takes float32 parameters alone, and here they are in x's dtype"
        return super().refusal(case)

    def runnable(self, case: Case, inputs: Inputs, *functions: Function) -> Runnable:
        if case.op == "layer_norm":
            return _layer_norm(case, inputs, *functions)
        (rmsnorm,) = functions
        forwards: dict[str, Forward] = {
            "rms_norm": lambda x, weight: rmsnorm(x, weight, eps=case.eps),
            "rms_norm_add": lambda x, residual, weight: rmsnorm(
                x, weight, residual=residual, eps=case.eps, prenorm=True
            ),
        }
        return runnable(case, inputs, forwards[case.op])


def _layer_norm(case: Case, inputs: Inputs, layernorm_fwd: Function, layernorm_bwd: Function) -> Runnable:
    def forward(t: Inputs) -> tuple[Outputs, Outputs]:
        y, rstd, mean = layernorm_fwd(t["x"], t["weight"], t["bias"], case.eps, return_rstd=True, return_mean=True)
        return {"y": y, "mean": mean, "rstd": rstd}, {"rstd": rstd, "mean": mean}

    def backward(t: Inputs, saved: Outputs) -> Outputs:
        gradients = layernorm_bwd(t["x"], t["weight"], t["dy"], **saved, has_bias=True)
        return dict(zip(("dx", "dw", "db"), gradients, strict=True))

    return _without_autograd.runnable(case, inputs, forward, backward)


PROVIDER = Quack()
