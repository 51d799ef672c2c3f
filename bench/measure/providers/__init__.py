"""The implementations that can be measured. Each module here has those of one library as `PROVIDERS`, and is found."""

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
    compiles = False  # True where kernels of its own are compiled, one for each direction of a problem
    one_shape = False  # True where a program is compiled for a shape, so that another number of rows has another one
    timed = True  # False for providers that are only judged

    @abstractmethod
    def version(self) -> str:
        """Version of the library that does the work."""

    def unavailable(self, device: torch.device) -> str | None:
        """The reason why nothing can be served on this device (a missing package, no GPU), or None."""
        return None

    def backend(self, case: Case, inputs: Inputs) -> str:
        """The code that runs this case: triton, interpreter, inductor, cudnn, ...; by default the provider's name."""
        return self.name

    def plan(self, case: Case, inputs: Inputs) -> str:
        """The kernels of this case and their grids, in a line; "" for providers that do not tell them."""
        return ""

    @abstractmethod
    def build(self, case: Case, inputs: Inputs) -> Runnable:
        """Compiles and prepares the case; raises Unsupported with the reason where it does not serve it."""


@cache
def providers() -> dict[str, Provider]:
    """Every provider by name, sorted."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    found: list[Provider] = [provider for module in modules for provider in module.PROVIDERS]
    return {provider.name: provider for provider in sorted(found, key=lambda provider: provider.name)}
