"""The base of the libraries to compare with: how one is found, which operators it serves, and what is called.

A cell of a library is that library's kernels or it is unsupported: an operator that it lacks is not put together from
PyTorch's, and entry points are called below the modules that would quietly run PyTorch's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pkgutil import resolve_name
from typing import Any, ClassVar

import torch

from bench.cases.case import Case
from bench.cases.operators import Inputs
from bench.measure.providers import Provider, Runnable, Unsupported, _autograd, _without_autograd

Function = Callable[..., Any]

# Which of an operator's entry points a mode runs, where forward and backward are two functions.
_RUN_BY = {"fwd": slice(1), "eval": slice(1), "bwd": slice(-1, None), "fwd_bwd": slice(None)}


@dataclass(frozen=True)
class Native:
    """One operator as a library serves it.

    `entry_points` are called, each module:name: one function that autograd differentiates, or forward and backward.
    `call` takes the case and them and returns a `Forward`, or the two functions of _without_autograd.py. `settings`
    names the choices that are no defaults; `refusal` returns why a case is not served, or None.
    """

    entry_points: tuple[str, ...]
    call: Callable[..., Any]
    settings: str = ""
    refusal: Callable[[Case], str | None] = lambda case: None


class Peer(Provider):
    """Another project's library. Nothing of it is imported before a case is built."""

    package: str  # the distribution that has the version
    source: str  # how one gets it
    modules: tuple[str, ...]  # top-level modules that have to be there
    natives: ClassVar[Mapping[str, Native]]  # by operator
    # Why an operator is not served, where there is more to say than that it is missing.
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
        native = self.natives.get(case.op)
        called = [entry.partition(":")[2] for entry in native.entry_points[_RUN_BY[case.mode]]] if native else []
        return f"{self.name}: {', '.join([*called, *([native.settings] if native and native.settings else [])])}"

    def build(self, case: Case, inputs: Inputs) -> Runnable:
        refusal = self.unavailable(inputs["x"].device) or self.refusal(case)
        if refusal:
            raise Unsupported(refusal)
        native = self.natives[case.op]
        called = native.call(case, *(self.load(entry) for entry in native.entry_points))
        if len(native.entry_points) == 1:
            return _autograd.runnable(case, inputs, called)
        return _without_autograd.runnable(case, inputs, *called)

    def refusal(self, case: Case) -> str | None:
        """The reason why this case is not served, or None."""
        if case.op in self.natives:
            return self.natives[case.op].refusal(case)
        return self.unserved.get(case.op, f"{self.package} has no {case.op}")

    def load(self, entry_point: str) -> Any:
        """The object that a module:name stands for; Unsupported where this installation cannot give it."""
        try:
            return resolve_name(entry_point)
        except (ImportError, AttributeError, OSError) as error:  # OSError: a shared library is missing
            told = (str(error).splitlines() or [type(error).__name__])[0]
            raise Unsupported(f"{self.package} {self.version()} cannot give {entry_point}: {told}") from error
