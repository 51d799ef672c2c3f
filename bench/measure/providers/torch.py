"""PyTorch eager: torch.nn.functional as it is installed, and compositions of it for the operators that it lacks.

PyTorch may hand an operator on: batch norm to cuDNN, and from 2.13 on RMS norm to its vendored QuACK kernels where
nvidia-cutlass-dsl and apache-tvm-ffi are installed in versions it knows (nvidia-cudnn-frontend brings both). Both are
what a user of that installation gets, so neither is switched off (TORCH_DISABLE_NATIVE_JIT=1 in the environment stops
QuACK, and must be set before torch is imported, which is out of a provider's hands). `backend` says what ran, cell by
cell.
"""

from __future__ import annotations

import torch

from bench.cases.case import Case
from bench.cases.operators import Inputs, operators
from bench.measure.providers import Outputs, Provider, Runnable
from bench.measure.providers._autograd import bound, runnable
from normlib import composed


class Torch(Provider):
    """The usual baseline, and the yardstick of float32's error."""

    name = "torch"

    def version(self) -> str:
        """PyTorch's version, and QuACK's presence where PyTorch may use it."""
        return f"{torch.__version__} (QuACK for rms_norm)" if _quack_is_registered() else torch.__version__

    def backend(self, case: Case, inputs: Inputs) -> str:
        """torch, or torch-cudnn and torch-quack where PyTorch hands this case on."""
        library, picks = _HANDED_ON.get(operators()[case.op].plain.name, ("", None))
        return f"torch-{library}" if picks and inputs["x"].is_cuda and picks(case, inputs) else "torch"

    def build(self, case: Case, inputs: Inputs) -> Runnable:
        cell = runnable(case, inputs, bound(case, torch.nn.functional, composed))
        native = _NATIVE.get(operators()[case.op].plain.name)
        if native is None or not case.mode.startswith("fwd"):
            return cell

        def outputs() -> Outputs:
            # With z to give back, the residual is added before the norm.
            x = inputs["x"] + inputs["residual"] if "dz" in inputs else inputs["x"]
            _, mean, rstd = native(case, x, inputs["weight"], inputs["bias"])
            return cell.outputs() | {"mean": mean.flatten(), "rstd": rstd.flatten()}

        return Runnable(cell.run, outputs)


# The norms whose statistics are to be had: RMS norm's only through a private operator, and compositions keep none.
_NATIVE = {
    "batch_norm": lambda case, x, w, b: torch.native_batch_norm(x, w, b, None, None, True, 0.0, case.eps),
    "layer_norm": lambda case, x, w, b: torch.native_layer_norm(x, list(case.shape[1:]), w, b, case.eps),
}


def _picks_cudnn(case: Case, inputs: Inputs) -> bool:
    tensors = (inputs[name] for name in ("x", "weight", "bias", "running_mean", "running_var"))
    # The function that torch.nn.functional.batch_norm itself asks; it has no public name.
    picked = torch._C._select_batch_norm_backend(*tensors, case.mode != "eval", case.eps)
    return bool(picked == torch._C._BatchNormBackend.Cudnn)  # type: ignore[attr-defined]


def _quack_is_registered() -> bool:
    try:
        from torch._native import cutedsl_utils
        from torch._native.common_utils import check_native_jit_disabled
    except ImportError:  # before 2.13
        return False
    # What PyTorch asks itself before it registers the override.
    return cutedsl_utils.runtime_available() and not check_native_jit_disabled() and cutedsl_utils._version_is_ok()


def _picks_quack(case: Case, inputs: Inputs) -> bool:
    if not _quack_is_registered():
        return False
    from torch._native.ops.norm.rmsnorm_impl import _fused_rms_norm_cond

    return bool(_fused_rms_norm_cond(inputs["x"], list(case.shape[-1:]), inputs["weight"], case.eps))


# By norm, the library that PyTorch may hand it on to, and whether it does.
_HANDED_ON = {"batch_norm": ("cudnn", _picks_cudnn), "rms_norm": ("quack", _picks_quack)}

PROVIDERS = (Torch(),)
