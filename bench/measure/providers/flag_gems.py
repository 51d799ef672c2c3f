"""FlagGems' Triton kernels, by the functions that it registers for PyTorch's operators.

    layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5) -> y, mean, rstd
    layer_norm_backward(grad_out, input, normalized_shape, mean, rstd, weight=None, bias=None, output_mask=None)
    rms_norm(x, normalized_shape, weight, eps=1e-5)
    batch_norm(input, weight=None, bias=None, running_mean=None, running_var=None, training=False, momentum=0.1,
               eps=1e-5) -> y, mean, rstd
    batch_norm_backward(grad_out, input, weight=None, running_mean=None, running_var=None, save_mean=None,
                        save_invstd=None, train=False, eps=1e-5, output_mask=None)

Called by themselves, and not through flag_gems.enable(), which replaces PyTorch's operators for the whole process.
Layer and batch norm keep mean and rstd in x's dtype. Most of the kernels are autotuned, and importing the package asks
for a GPU: the interpreter cannot run them.
"""

from __future__ import annotations

from typing import ClassVar

from bench.cases.case import Case
from bench.cases.operators import Inputs, operators
from bench.measure.providers import Outputs
from bench.measure.providers._peer import Function, Native, Peer

_LAYER_NORM, _BATCH_NORM = "flag_gems.ops.layernorm", "flag_gems.ops.batch_norm"
_GRADIENTS = ("dx", "dw", "db")
_EVERY_GRADIENT = [True, True, True]


def _layer_norm(case: Case, layer_norm: Function, layer_norm_backward: Function) -> tuple[Function, Function]:
    normalized_shape = list(case.shape[-1:])

    def forward(t: Inputs) -> tuple[Outputs, Outputs]:
        y, mean, rstd = layer_norm(t["x"], normalized_shape, t["weight"], t["bias"], case.eps)
        return {"y": y, "mean": mean, "rstd": rstd}, {"mean": mean, "rstd": rstd}

    def backward(t: Inputs, saved: Outputs) -> Outputs:
        gradients = layer_norm_backward(
            t["dy"],
            t["x"],
            normalized_shape,
            **saved,
            weight=t["weight"],
            bias=t["bias"],
            output_mask=_EVERY_GRADIENT,
        )
        return dict(zip(_GRADIENTS, gradients, strict=True))

    return forward, backward


def _batch_norm(case: Case, batch_norm: Function, batch_norm_backward: Function) -> tuple[Function, Function]:
    momentum = operators()[case.op].momentum

    def forward(t: Inputs) -> tuple[Outputs, Outputs]:
        parameters = [t[name] for name in ("weight", "bias", "running_mean", "running_var")]
        y, mean, rstd = batch_norm(t["x"], *parameters, case.mode != "eval", momentum, case.eps)
        if case.mode == "eval":  # which leaves mean and rstd unwritten
            return {"y_eval": y}, {}
        running = {name: t[name] for name in ("running_mean", "running_var")}
        return {"y": y, **running, "mean": mean, "rstd": rstd}, {"save_mean": mean, "save_invstd": rstd}

    def backward(t: Inputs, saved: Outputs) -> Outputs:
        running = t["running_mean"], t["running_var"]
        gradients = batch_norm_backward(
            t["dy"], t["x"], t["weight"], *running, **saved, train=True, eps=case.eps, output_mask=_EVERY_GRADIENT
        )
        return dict(zip(_GRADIENTS, gradients, strict=True))

    return forward, backward


def _half_precision_gradients(case: Case) -> str | None:
    if case.mode.endswith("bwd") and case.dtype != "fp32":
        return "batch_norm_backward gives float32 parameters gradients in x's dtype"
    return None


class FlagGems(Peer):
    """BAAI's operators in Triton; its batch norm goes back to attorch's."""

    name = "flag_gems"
    compiles = True
    package = "flag_gems"
    source = "pip install flag_gems"
    modules = ("flag_gems",)
    natives: ClassVar = {
        "layer_norm": Native((f"{_LAYER_NORM}:layer_norm", f"{_LAYER_NORM}:layer_norm_backward"), _layer_norm),
        "rms_norm": Native(
            ("flag_gems.ops.rms_norm:rms_norm",),
            lambda case, rms_norm: lambda x, weight: rms_norm(x, list(case.shape[-1:]), weight, case.eps),
        ),
        "batch_norm": Native(
            (f"{_BATCH_NORM}:batch_norm", f"{_BATCH_NORM}:batch_norm_backward"),
            _batch_norm,
            refusal=_half_precision_gradients,
        ),
    }
    unserved: ClassVar = {
        "layer_norm_add": "skip_layer_norm gives no sum back, and has no backward",
        "rms_norm_add": "fused_add_rms_norm writes into its inputs, and has no backward",
    }


PROVIDERS = (FlagGems(),)
