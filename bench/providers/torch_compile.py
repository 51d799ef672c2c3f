"""torch.compile of PyTorch's functional: what Inductor makes of the same call."""

from __future__ import annotations

import os
import shutil

import torch
from torch._functorch import config as functorch_config

from bench.case import Case
from bench.operators import Inputs
from bench.providers import Provider, Runnable
from bench.providers._activations import bound
from bench.providers._pairs import runnable
from bench.providers._torch_functional import FUNCTIONAL


class TorchCompile(Provider):
    """One graph a case, specialized on its shape.

    Compiling is part of building, with the caches of this machine as they are: a shape that was compiled before
    builds faster.
    """

    name = "torch_compile"

    def version(self) -> str:
        """PyTorch's version: Inductor is part of it."""
        return torch.__version__

    def unavailable(self, device: torch.device) -> str | None:
        """On a CPU Inductor writes C++, and needs a compiler for it."""
        compiler = os.environ.get("CXX", "g++")
        if device.type == "cpu" and shutil.which(compiler) is None:
            return f"no C++ compiler: {compiler} is not installed"
        return None

    def backend(self, case: Case, inputs: Inputs) -> str:
        """Inductor's Triton on a GPU, its C++ on a CPU."""
        return "inductor-triton" if inputs["x"].is_cuda else "inductor-cpp"

    def build(self, case: Case, inputs: Inputs) -> Runnable:
        # The limit on recompilations counts by code object, and every case has the same ones.
        torch._dynamo.reset()
        forward = torch.compile(bound(case, FUNCTIONAL), fullgraph=True, dynamic=False)
        # Backward alone runs many times on one graph, which a backward that may overwrite what was saved refuses.
        with functorch_config.patch(donated_buffer=case.mode != "bwd"):
            return runnable(case, inputs, forward)


PROVIDER = TorchCompile()
