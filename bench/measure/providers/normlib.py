"""This project's own layers."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import normlib
import normlib.functional
from bench.cases.case import Case
from bench.cases.operators import Forward, Inputs, operators
from bench.measure.launches import passes, recorded, untouched
from bench.measure.providers import Outputs, Provider, Runnable
from bench.measure.providers._autograd import bound, runnable
from normlib.kernels.host import device_of

# By norm, the last results of normlib's own operators: of these the statistics are judged beside the outputs.
_LAST_RESULTS = {
    **dict.fromkeys(("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"), ("mean", "rstd")),
    "batch_renorm": ("mean", "rstd", "renorm"),
    "noisy_batch_norm": ("mean", "rstd", "noise"),
}
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
        """The backend that normlib itself names."""
        return normlib.backend_for(inputs["x"])

    def plan(self, case: Case, inputs: Inputs) -> str:
        """The launches that the launchers choose: `streaming: _batch_norm_stats_kernel 2x264, ...`."""
        if self.backend(case, inputs) == "torch":
            return ""
        operator, modes = operators()[case.op], _PASSES.get(case.mode, (case.mode,))
        found = recorded(passes(operator, case, forward_of, untouched(operator, case)), device_of(inputs["x"]))
        return "; ".join(f"{one.kind}: {', '.join(map(str, one.launches))}" for one in found if one.mode in modes)

    def build(self, case: Case, inputs: Inputs) -> Runnable:
        cell = runnable(case, inputs, forward_of(case))
        names = _LAST_RESULTS.get(operators()[case.op].plain.name)
        if names is None or not case.mode.startswith("fwd") or self.backend(case, inputs) == "torch":
            return cell

        def outputs() -> Outputs:
            with _FirstResults() as first:  # type: ignore[no-untyped-call]
                found = cell.outputs()
            saved = dict(zip(names, first.results[-len(names) :], strict=True))
            if "renorm" in saved:
                found |= {"r": saved["renorm"][0], "d": saved["renorm"][1]}
            if saved["mean"].numel():  # a pair of floats, whose first is the mean in its dtype; RMS norm has none
                found["mean"] = saved["mean"][0]
            return found | {"rstd": saved["rstd"]}

        return Runnable(cell.run, outputs)


def forward_of(case: Case) -> Forward:
    """Returns the call of the case's operator, with its scalars bound; a fused form is its norm's own."""
    return bound(case, normlib.functional, fused=True)


class _FirstResults(TorchDispatchMode):
    """Within, `results` becomes what the first of normlib's operators returns, saved statistics included."""

    results: tuple[torch.Tensor, ...] = ()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = operator(*args, **(kwargs or {}))
        if operator.namespace == "normlib" and not self.results:
            self.results = tuple(returned)
        return returned


PROVIDERS = (Normlib(),)
