"""This project's own layers."""

from __future__ import annotations

from importlib import metadata

import normlib
import normlib.functional
from bench.case import Case
from bench.operators import Inputs
from bench.providers import Provider, Runnable
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
        return runnable(case, inputs, bound(case, normlib.functional))


PROVIDER = Normlib()
