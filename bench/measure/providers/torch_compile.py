"""torch.compile of PyTorch's functional: what Inductor makes of the same call."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import replace
from unittest import mock

import torch
from torch._functorch import config as functorch_config

from bench.cases.case import Case
from bench.cases.operators import Forward, Inputs, operators
from bench.measure.providers import Provider, Runnable
from bench.measure.providers._autograd import bound, runnable
from normlib import composed


class TorchCompile(Provider):
    """A graph for each of a problem's directions, specialized on its shape.

    Compiling is part of building, with the caches of this machine as they are: a shape that was compiled before
    builds faster. Forward only and backward only are two halves of one compilation; forward and backward together are
    compiled by themselves, as training does it.
    """

    name = "torch_compile"
    one_shape = True

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
        if inputs["x"].is_cuda:
            _keep_tritons_cache()
        forward = _compiled(case)
        # Backward runs many times by itself on one graph, which a backward that may overwrite what was saved refuses.
        with functorch_config.patch(donated_buffer=case.mode not in ("fwd", "bwd")):
            return runnable(case, inputs, forward)


def compiled_as(case: Case) -> Case:
    """Returns the case whose compilation this one shares: backward that of forward, the others have their own."""
    return replace(case, mode="fwd") if case.mode == "bwd" else case


def compile_ahead(case: Case, device: torch.device) -> None:
    """Compiles what `build` compiles, backward included, and runs nothing; the result stays in Inductor's cache."""
    from torch._inductor import config as inductor_config
    from torch._inductor.output_code import CompiledFxGraph
    from torch._subclasses.fake_tensor import FakeTensorMode

    def stop(*_: object) -> None:
        raise _Stopped

    # Not around the compilation: Dynamo and Inductor have real tensors of their own, such as a generator's state.
    with FakeTensorMode():
        inputs = operators()[case.op].drawn(case, device, 0)
    with (
        # As many processes as are wanted are there already.
        inductor_config.patch(compile_threads=1),
        # By default backward is compiled when it first runs.
        functorch_config.patch(force_non_lazy_backward_lowering=True),
        # What is compiled must not run: its pointers are null.
        mock.patch.object(CompiledFxGraph, "__call__", stop),
        suppress(_Stopped),
    ):
        PROVIDERS[0].build(case, inputs)


class _Stopped(Exception):
    """The end of a compilation, in place of the first run."""


# Of the problem that was built last.
_functions: dict[Case, Forward] = {}


def _compiled(case: Case) -> Forward:
    """Returns the compiled function of the case, which others of its problem may have used before."""
    if all(known.problem != case.problem for known in _functions):
        # The limit on recompilations counts by code object, and every case has the same ones.
        torch._dynamo.reset()
        _functions.clear()
    shared = compiled_as(case)
    if shared not in _functions:
        _functions[shared] = torch.compile(bound(case, torch.nn.functional, composed), fullgraph=True, dynamic=False)
    return _functions[shared]


def _keep_tritons_cache() -> None:
    """Makes Triton's cache on disk the process's for good: Inductor gives it another place where none was named.

    Kernels of other providers, which were compiled before, would then be compiled again.
    """
    from triton import knobs

    os.environ.setdefault("TRITON_CACHE_DIR", knobs.cache.dir)


PROVIDERS = (TorchCompile(),)
