"""The operators that can be measured, found by themselves: each module here defines one `OPERATOR`."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import log2, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from bench.case import Case

# Tensors by name: x, weight, bias, dy and, for batch norm, running_mean and running_var.
Inputs = dict[str, "torch.Tensor"]
# Float64 tensors by name: y, dx, dw, db and, for batch norm, running_mean, running_var and y_eval (evaluation's y).
Reference = dict[str, "torch.Tensor"]
# Every axis of the operator, "dtype" and "layout" -> values; "eps" too where it is not the operator's default.
Grid = Mapping[str, tuple[int | str | float, ...]]


@dataclass(frozen=True)
class Preset:
    """A named set of cases: its grids one after another, each the cross product of its values.

    A sweep is one grid; a model, whose shapes are a list and not a product, is one grid a layer shape.
    Modes are no part of it: the operator's `modes` hold unless --mode says otherwise.
    """

    about: str  # one line for --list
    grids: tuple[Grid, ...]


class Operator(ABC):
    """One operator: its axes, its inputs, its truth, and what it must move."""

    name: str  # batch_norm
    short: str  # bn, on the command line
    axes: tuple[str, ...]  # ("batch", "channels", "spatial"), in the order of x's shape
    layouts: tuple[str, ...]
    modes: tuple[str, ...]  # the modes measured unless --mode says otherwise
    eps: float  # where a preset's grid has none
    statistics_dim: int  # the dimension of x that has one statistic an index: 1 (channels) or 0 (rows)
    presets: Mapping[str, Preset]  # every operator has smoke, quick and full

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

    def amplification(self, inputs: Inputs, reference: Reference) -> dict[str, float]:
        """How many of its terms' roundings a gradient that is a sum over x carries, for each such gradient.

        n terms added pairwise in float32 err by some u sqrt(sum of terms^2) sqrt(1 + log2(n) / 3): each term's own
        rounding, and u / sqrt(3) at each of log2(n) levels. Over the sum itself that is about 1 where terms are
        independent of each other, and more where few sums are and their terms happen to cancel.
        """
        dy, channel = inputs["dy"].double(), [1, -1] + [1] * (inputs["dy"].dim() - 2)
        count = dy.numel() // dy.shape[1]
        x_hat = reference["y"] / inputs["weight"].double().view(channel)
        if "bias" in inputs:
            x_hat = x_hat - (inputs["bias"].double() / inputs["weight"].double()).view(channel)
        levels = sqrt(1 + log2(count) / 3)
        terms = {"dw": dy * x_hat, "db": dy}
        size = {name: float(reference[name].norm()) for name in terms if name in reference}
        # A sum that is zero everywhere leaves nothing to be relative to.
        return {n: levels * max(float(terms[n].norm()) / size[n], 1.0) if size[n] else 1.0 for n in size}

    def dtypes(self, inputs: Inputs) -> dict[str, torch.dtype]:
        """The dtype that each output must come in: its own input's, or that of the input it is a gradient of."""
        of = {"y": "x", "y_eval": "x", "dx": "x", "dw": "weight", "db": "bias"}
        of |= {name: name for name in ("running_mean", "running_var")}
        return {output: inputs[name].dtype for output, name in of.items() if name in inputs}


@cache
def operators() -> dict[str, Operator]:
    """Every operator by name, sorted."""
    modules = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    found = [importlib.import_module(f"{__name__}.{name}").OPERATOR for name in modules]
    return {operator.name: operator for operator in sorted(found, key=lambda o: o.name)}
