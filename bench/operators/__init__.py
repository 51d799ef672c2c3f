"""The operators that can be measured, found by themselves: each module here defines one `OPERATOR`."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from bench.case import Case

# Tensors by name: x, weight, bias, dy and, for batch norm, running_mean and running_var.
Inputs = dict[str, "torch.Tensor"]
# Float64 tensors by name: y, dx, dw, db and, for batch norm in training, running_mean and running_var.
Reference = dict[str, "torch.Tensor"]


class Operator(ABC):
    """One operator: its axes, its inputs, its truth, and what it must move."""

    name: str  # batch_norm
    short: str  # bn, on the command line
    axes: tuple[str, ...]  # ("batch", "channels", "spatial"), in the order of x's shape
    layouts: tuple[str, ...]
    modes: tuple[str, ...]  # the modes measured unless --mode says otherwise
    # preset name -> axis, "dtype", "layout" or "eps" -> values; every operator has smoke, quick and full.
    presets: Mapping[str, Mapping[str, tuple[int | str | float, ...]]]

    @abstractmethod
    def shape(self, axes: Mapping[str, int | str]) -> tuple[int, ...]:
        """The shape of x for one value of each axis."""

    @abstractmethod
    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Random inputs: x with an offset mean, weight and bias that are neither ones nor zeros, dy."""

    @abstractmethod
    def reference(self, case: Case, inputs: Inputs) -> Reference:
        """The truth in float64, from the inputs as rounded to the case's dtype."""

    @abstractmethod
    def bytes_moved(self, case: Case) -> int:
        """Bytes that must cross device memory: each activation once a pass that cannot be avoided."""

    @abstractmethod
    def outputs(self, mode: str) -> tuple[str, ...]:
        """Names of the reference's tensors that this mode produces."""


@cache
def operators() -> dict[str, Operator]:
    """Every operator by name, sorted."""
    found = [importlib.import_module(f"{__name__}.{m.name}").OPERATOR for m in pkgutil.iter_modules(__path__)]
    return {operator.name: operator for operator in sorted(found, key=lambda o: o.name)}
