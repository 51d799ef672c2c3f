"""This project's own layers."""

from __future__ import annotations

from importlib import metadata

import torch

import normlib
import normlib.functional
from bench.case import Case
from bench.operators import Inputs
from bench.providers import Outputs, Provider, Runnable
from bench.providers._autograd import bound, runnable


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

    def build(self, case: Case, inputs: Inputs) -> Runnable:
        def saved(inputs: Inputs) -> Outputs:
            operators, x, weight = torch.ops.normlib, inputs["x"], inputs["weight"]
            if self.backend(case, inputs) == "torch":
                return {}
            if case.op == "batch_norm":
                _, mean, rstd = operators.batch_norm_train(x, weight, None, None, None, 0.0, case.eps)
            else:
                _, mean, rstd = getattr(operators, case.op)(x, list(case.shape[1:]), weight, None, case.eps)
            # A mean is a pair of floats, whose first is the mean in its dtype.
            return {"mean": mean[0], "rstd": rstd} if mean.numel() else {"rstd": rstd}

        return runnable(case, inputs, bound(case, normlib.functional), saved)


PROVIDER = Normlib()
