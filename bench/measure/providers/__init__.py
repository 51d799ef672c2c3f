"""The implementations that can be measured, found by themselves: each module here defines one `PROVIDER`."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from bench.cases.case import Case
    from bench.cases.operators import Inputs

Outputs = dict[str, "torch.Tensor"]


class Unsupported(Exception):
    """This provider does not serve this case; the text says why, in one line."""


@dataclass(frozen=True)
class Runnable:
    """A built cell. `run` is what is timed, and nothing else; `outputs` gives what the last kind of run computes.

    `run()` performs one pass of the case's mode on the inputs it was built with; it allocates its own results,
    leaves the inputs alone except batch norm's running buffers, and accumulates into no `.grad`. It returns what it
    computed, by name, in any shape of as many elements: after timing it is judged once more, on new inputs.
    `outputs()` performs one pass on the inputs' *current* contents and returns every tensor that the operator
    lists for the mode, by name; running buffers are returned as copies and put back as they were. Forward in training
    may add the statistics that it saves (`mean`, `rstd`), where the implementation gives them away: flat, one a row or
    channel.
    """

    run: Callable[[], Outputs]
    outputs: Callable[[], Outputs]


class Provider(ABC):
    """One implementation under its own name. It never lets another implementation run in its place."""

    name: str
    timed = True  # False for what is there to be judged alone

    @abstractmethod
    def version(self) -> str:
        """Version of the library that does the work."""

    def unavailable(self, device: torch.device) -> str | None:
        """Why nothing can be served on this device (a missing package, no GPU), or None."""
        return None

    def backend(self, case: Case, inputs: Inputs) -> str:
        """What runs this case: triton, interpreter, inductor, cudnn, ...; the provider's name unless it can differ."""
        return self.name

    def plan(self, case: Case, inputs: Inputs) -> str:
        """How this case runs, for whom it can differ: kernels and their grids, in a line; "" where that is not told."""
        return ""

    @abstractmethod
    def build(self, case: Case, inputs: Inputs) -> Runnable:
        """Compiles and prepares the case; raises Unsupported with the reason where it does not serve it."""


@cache
def providers() -> dict[str, Provider]:
    """Every provider by name, sorted."""
    modules = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    found = [importlib.import_module(f"{__name__}.{name}").PROVIDER for name in modules]
    return {provider.name: provider for provider in sorted(found, key=lambda p: p.name)}
