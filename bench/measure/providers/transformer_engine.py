"""TransformerEngine's CUDA kernels, by the functions of its extension that its modules call.

    layernorm_fwd(input, weight, bias, eps, ln_out, quantizer, otype, sm_margin, zero_centered_gamma) -> y, mean, rstd
    layernorm_bwd(dz, x, mu, rsigma, gamma, sm_margin, zero_centered_gamma) -> dx, dw, db
    rmsnorm_fwd(input, weight, eps, ln_out, quantizer, otype, sm_margin, zero_centered_gamma) -> y, None, rstd
    rmsnorm_bwd(dz, x, rsigma, gamma, sm_margin, zero_centered_gamma) -> dx, dw

The modules free what forward saved as soon as backward has run, so that backward cannot be run twice on their graph.
The functions are taken from where the modules have them: the extension can be imported only after
transformer_engine.pytorch, which finds and loads it.
"""

from __future__ import annotations

import os
from typing import ClassVar

from bench.cases.case import Case
from bench.cases.operators import Inputs, operators
from bench.cases.random_inputs import TORCH_DTYPES
from bench.measure.providers import Outputs
from bench.measure.providers._peer import Function, Native, Peer

_LAYER_NORM = "transformer_engine.pytorch.ops.basic.layer_norm"
_RMS_NORM = "transformer_engine.pytorch.ops.basic.rmsnorm"
_DTYPES = "transformer_engine.pytorch.constants:TE_DType"
# y is a new tensor, and not quantized.
_OUTPUT = _QUANTIZER = None
# The modules' own: every multiprocessor, and the weight as it is.
_SM_MARGIN, _ZERO_CENTRED = 0, False

# With these it runs cuDNN's kernels under its own name.
_CUDNN_SWITCHES = ("NVTE_NORM_FWD_USE_CUDNN", "NVTE_NORM_BWD_USE_CUDNN")


def _norm(case: Case, norm_fwd: Function, norm_bwd: Function) -> tuple[Function, Function]:
    operator, otype = operators()[case.op], ENGINE.load(_DTYPES)[TORCH_DTYPES[case.dtype]]
    switches = case.eps, _OUTPUT, _QUANTIZER, otype, _SM_MARGIN, _ZERO_CENTRED

    def forward(t: Inputs) -> tuple[Outputs, Outputs]:
        y, mean, rstd = norm_fwd(t["x"], *(t[name] for name in operator.parameters), *switches)
        statistics = {name: {"mean": mean, "rstd": rstd}[name] for name in operator.saved}
        return {"y": y, **statistics}, statistics

    def backward(t: Inputs, statistics: Outputs) -> Outputs:
        gradients = norm_bwd(t["dy"], t["x"], *statistics.values(), t["weight"], _SM_MARGIN, _ZERO_CENTRED)
        return dict(zip(operator.outputs("bwd"), gradients, strict=True))

    return forward, backward


class TransformerEngine(Peer):
    """NVIDIA's layers for transformers."""

    name = "transformer_engine"
    package = "transformer_engine"
    source = "pip install --no-build-isolation 'transformer_engine[pytorch]'"
    modules = ("transformer_engine",)
    natives: ClassVar = {
        "layer_norm": Native((f"{_LAYER_NORM}:layernorm_fwd", f"{_LAYER_NORM}:layernorm_bwd"), _norm),
        "rms_norm": Native((f"{_RMS_NORM}:rmsnorm_fwd", f"{_RMS_NORM}:rmsnorm_bwd"), _norm),
    }
    unserved: ClassVar = {"rms_norm_add": "TransformerEngine adds a residual's gradient in its kernel, but no residual"}

    def refusal(self, case: Case) -> str | None:
        """Its own kernels, or none."""
        switched = [name for name in _CUDNN_SWITCHES if os.environ.get(name, "0") not in ("", "0")]
        return f"{switched[0]} is set, with which it runs cuDNN's kernels" if switched else super().refusal(case)


ENGINE = TransformerEngine()
PROVIDERS = (ENGINE,)
