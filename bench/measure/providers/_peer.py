"""What the libraries to compare with have in common: how one is found, what it serves, and what exactly is called.

A cell of a library is that library's kernels or it is unsupported: an operator that it lacks is not put together from
PyTorch's, and entry points are called below the modules that would quietly run PyTorch's.
"""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Callable, Mapping
from importlib import metadata
from pkgutil import resolve_name
from typing import Any, ClassVar

import torch

from bench.cases.case import Case
from bench.cases.operators import Inputs
from bench.measure.providers import Provider, Runnable, Unsupported

Function = Callable[..., Any]

# Which of an operator's entry points a mode runs, where forward and backward are two functions.
_RUN_BY = {"fwd": slice(1), "eval": slice(1), "bwd": slice(-1, None), "fwd_bwd": slice(None)}


class Peer(Provider):
    """Another project's library. Nothing of it is imported before a case is built."""

    package: str  # the distribution that has the version
    source: str  # how one gets it
    modules: tuple[str, ...]  # top-level modules that have to be there
    # What is called for each operator that is served, as module:name: one function that autograd differentiates, or
    # forward and backward.
    entry_points: ClassVar[Mapping[str, tuple[str, ...]]]
    # What is chosen otherwise than by default, and why an operator is not served where there is more to say than that
    # it is missing.
    settings: ClassVar[Mapping[str, str]] = {}
    unserved: ClassVar[Mapping[str, str]] = {}

    def version(self) -> str:
        """The version of the installed package."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return "not installed"

    def unavailable(self, device: torch.device) -> str | None:
        """It must be installed, and the device a GPU: the interpreter runs no library's kernels but normlib's."""
        for module in self.modules:
            if importlib.util.find_spec(module) is None:
                return f"the module {module} is not installed ({self.source})"
        return None if device.type == "cuda" else f"{self.package} needs a GPU"

    def backend(self, case: Case, inputs: Inputs) -> str:
        """The entry points that this case runs, and what is chosen among their switches."""
        called = self.entry_points.get(case.op, ())[_RUN_BY[case.mode]]
        parts = [entry.partition(":")[2] for entry in called] + [self.settings.get(case.op, "")]
        return f"{self.name}: {', '.join(filter(None, parts))}"

    def build(self, case: Case, inputs: Inputs) -> Runnable:
        refusal = self.unavailable(inputs["x"].device) or self.refusal(case)
        if refusal:
            raise Unsupported(refusal)
        return self.runnable(case, inputs, *(self.load(entry) for entry in self.entry_points[case.op]))

    def refusal(self, case: Case) -> str | None:
        """Why this case is not served, or None."""
        if case.op in self.entry_points:
            return None
        return self.unserved.get(case.op, f"{self.package} has no {case.op}")

    def load(self, entry_point: str) -> Any:
        """What a module:name stands for; Unsupported where this installation cannot give it."""
        try:
            return resolve_name(entry_point)
        except (ImportError, AttributeError, OSError) as error:  # OSError: a shared library is missing
            told = (str(error).splitlines() or [type(error).__name__])[0]
            raise Unsupported(f"{self.package} {self.version()} cannot give {entry_point}: {told}") from error

    @abstractmethod
    def runnable(self, case: Case, inputs: Inputs, *functions: Function) -> Runnable:
        """The case through the operator's entry points, which come in the order that they are declared in."""
