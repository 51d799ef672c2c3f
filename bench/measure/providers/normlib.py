"""This project's own layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata

import torch
from torch import Tensor

import normlib
import normlib.functional
from bench.cases.case import Case
from bench.cases.operators import Inputs, batch_renorm, noisy_batch_norm, operators
from bench.cases.operators.batch_norm import MOMENTUM
from bench.cases.operators.group_norm import groups_of
from bench.measure.launches import passes, recorded, untouched
from bench.measure.providers import Outputs, Provider, Runnable, _activations
from bench.measure.providers._pairs import NORM_OF, Forward, bound, runnable
from normlib.kernels.host import device_of

# Of these families' operators PyTorch gives the statistics away too, to compare with.
_SAVING = ("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm")
# The modes that are two passes.
_PASSES = {"fwd_bwd": ("fwd", "bwd")}


class Normlib(Provider):
    """Triton's kernels on a GPU, Triton's interpreter or PyTorch's operators on a CPU: `backend` says which."""

    name = "normlib"

    def version(self) -> str:
        """The installed version; "checkout" where it runs uninstalled."""
        try:
            return metadata.version("normlib")
        except metadata.PackageNotFoundError:
            return "checkout"

    def backend(self, case: Case, inputs: Inputs) -> str:
        """As normlib itself tells it."""
        return normlib.backend_for(inputs["x"])

    def plan(self, case: Case, inputs: Inputs) -> str:
        """As the launchers choose it: `one launch, barrier: _forward_once 33x4`."""
        if self.backend(case, inputs) == "torch":
            return ""
        operator, modes = operators()[case.op], _PASSES.get(case.mode, (case.mode,))
        found = recorded(passes(operator, case, forward_of, untouched(operator, case)), device_of(inputs["x"]))
        return "; ".join(f"{one.kind}: {', '.join(map(str, one.launches))}" for one in found if one.mode in modes)

    def build(self, case: Case, inputs: Inputs) -> Runnable:
        def saved(inputs: Inputs) -> Outputs:
            # With all that the cell's own forward takes: another kernel would be compiled for anything left out.
            operators, weight, bias = torch.ops.normlib, inputs["weight"], inputs.get("bias")
            streams = [inputs[name] for name in ("x", "residual") if name in inputs]
            if self.backend(case, inputs) == "torch":
                return {}
            if case.op in _STATISTICS:
                return _STATISTICS[case.op](case, inputs)
            if not case.op.startswith(_SAVING):
                return {}
            statistics = (weight, bias, *_buffers(inputs), MOMENTUM, case.eps)
            if case.op == "batch_norm_add_relu":
                *_, mean, rstd = operators.batch_norm_add_relu_train(*streams, *statistics, True, False)
            elif case.op.startswith("batch_norm"):
                _, mean, rstd = operators.batch_norm_train(*streams, *statistics, case.op == "batch_norm_relu")
            elif case.op == "instance_norm":
                _, mean, rstd = operators.instance_norm(*streams, *statistics)
            elif case.op == "group_norm":
                _, mean, rstd = operators.group_norm(*streams, groups_of(case), weight, bias, case.eps)
            else:
                *_, mean, rstd = getattr(operators, case.op)(*streams, list(case.shape[1:]), weight, bias, case.eps)
            # A mean is a pair of floats, whose first is the mean in its dtype.
            return {"mean": mean[0], "rstd": rstd} if mean.numel() else {"rstd": rstd}

        return runnable(case, inputs, forward_of(case), saved)


def forward_of(case: Case) -> Forward:
    """Returns the call of the case's operator, with its scalars bound."""
    if case.op in _activations.NORM_OF:
        return _activations.fused(case, normlib.functional)
    return _fused(case) if case.op in NORM_OF else bound(case, normlib.functional)


def _fused(case: Case) -> Forward:
    """The norm that adds the residual itself."""
    norm = getattr(normlib.functional, NORM_OF[case.op])

    def forward(x: Tensor, residual: Tensor, **parameters: Tensor) -> tuple[Tensor, Tensor]:
        pair: tuple[Tensor, Tensor] = norm(x, case.shape[-1:], eps=case.eps, residual=residual, **parameters)
        return pair

    return forward


def _buffers(inputs: Inputs) -> list[Tensor]:
    """Copies of the running statistics, which move."""
    return [tensor.detach().clone() for name, tensor in inputs.items() if name.startswith("running_")]


def _renorm_statistics(case: Case, inputs: Inputs) -> Outputs:
    vectors = (inputs[name] for name in ("weight", "bias", "running_mean", "running_std"))
    scalars = (batch_renorm.MOMENTUM, case.eps, batch_renorm.RMAX, batch_renorm.DMAX, None)
    copies = [t.detach().clone() for t in vectors]  # running statistics move
    _, mean, rstd, renorm = torch.ops.normlib.batch_renorm_train(inputs["x"], *copies, *scalars)
    return {"mean": mean[0], "rstd": rstd, "r": renorm[0], "d": renorm[1]}


def _noisy_statistics(case: Case, inputs: Inputs) -> Outputs:
    vectors = (inputs["weight"], inputs["bias"], *_buffers(inputs))
    scalars = (MOMENTUM, case.eps, inputs["seed"], False, list(noisy_batch_norm.RANGES))
    _, mean, rstd, _ = torch.ops.normlib.noisy_batch_norm_train(inputs["x"], *vectors, *scalars)
    return {"mean": mean[0], "rstd": rstd}


# What forward saves, of operators that save more, or by another signature.
_STATISTICS: Mapping[str, Callable[[Case, Inputs], Outputs]] = {
    "batch_renorm": _renorm_statistics,
    "noisy_batch_norm": _noisy_statistics,
}


PROVIDER = Normlib()
