"""The operators that can be measured, found by themselves: each module here defines one `OPERATOR`."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from math import log2, sqrt
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from bench.cases.case import Case

# Tensors by name: x, weight, bias, dy and, for batch norm, running_mean and running_var.
Inputs = dict[str, "torch.Tensor"]
# Float64 tensors by name: y, dx, dw, db, the saved statistics mean and rstd, one value each a statistic, and for batch
# norm running_mean, running_var and y_eval (evaluation's y).
Reference = dict[str, "torch.Tensor"]
# A functional form as normlib.functional has it, and the same with a case's scalars bound: called with the case's input
# tensors by name, dy left out, it gives y.
Functional = Callable[..., "torch.Tensor"]
Forward = Callable[..., "torch.Tensor"]
# Every axis of the operator, "dtype" and "layout" -> values; "eps" too where it is not the operator's default.
Grid = Mapping[str, tuple[int | str | float, ...]]


@dataclass(frozen=True)
class Preset:
    """A named set of cases: its grids one after another, each the cross product of its values.

    A sweep is one grid; a model, whose shapes are a list and not a product, is one grid a layer shape.
    """

    about: str  # one line for --list
    grids: tuple[Grid, ...]
    modes: tuple[str, ...] | None = None  # of the operator's, unless --mode says otherwise; None for all of them


class Operator(ABC):
    """One operator: its axes, its inputs, its truth, and what it must move."""

    name: str  # batch_norm
    short: str  # bn, on the command line
    axes: tuple[str, ...]  # ("batch", "channels", "spatial"), in the order of x's shape, then options
    choices: Mapping[str, tuple[int | str, ...]] = {}  # what an option may be, where it is one of a few
    layouts: tuple[str, ...]
    modes: tuple[str, ...]  # those it has, measured unless the preset or --mode says otherwise
    eps: float  # where a preset's grid has none
    statistics_dim: int  # the dimension of x that has one statistic an index: 1 (channels) or 0 (rows)
    saved: tuple[str, ...] = ("mean", "rstd")  # the statistics that forward keeps for backward
    presets: Mapping[str, Preset]  # every operator has smoke, quick and full

    @abstractmethod
    def shape(self, axes: Mapping[str, int | str]) -> tuple[int, ...]:
        """The shape of x for one value of each axis."""

    def fitted(self, axes: dict[str, int | str], typed: Collection[str]) -> dict[str, int | str]:
        """The axes, of which some were typed and the others are a preset's, which may go with other ones only."""
        return axes

    @abstractmethod
    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Random inputs: x with an offset mean, weight and bias that are neither ones nor zeros, dy."""

    def drawn(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Returns what `inputs` does, except that no value is looked at: tensors without memory can be drawn too."""
        return self.inputs(case, device, seed)

    @abstractmethod
    def reference(self, case: Case, inputs: Inputs) -> Reference:
        """The truth in float64, from the inputs as rounded to the case's dtype."""

    def bind(self, case: Case, function: Functional) -> Forward:
        """The operator's functional form with the case's scalars bound, which an operator that fuses others has not."""
        raise NotImplementedError(f"{self.name} is made of other operators")

    @abstractmethod
    def bytes_moved(self, case: Case) -> int:
        """Bytes that must cross device memory: each activation once a pass that cannot be avoided."""

    @abstractmethod
    def outputs(self, mode: str) -> tuple[str, ...]:
        """Names of the reference's tensors that this mode produces."""

    def amplification(self, inputs: Inputs, reference: Reference) -> dict[str, float]:
        """How many of its terms' roundings an output carries that is a sum: of two terms (y), or over x (dw, db).

        n terms added pairwise in float32 err by some u sqrt(sum of terms^2) sqrt(1 + log2(n) / 3): each term's own
        rounding, and u / sqrt(3) at each of log2(n) levels. Over the sum itself that is about 1 where terms are
        independent of each other, and more where few sums are and their terms happen to cancel. In y, x_hat weight and
        the bias may cancel throughout a statistic; the mean over statistics carries the root mean square.

        A mean and the deviations under dw are as small as x. Where that is below float32's normal numbers, what is lost
        is not 2^-24 of a value but up to 2^-150 of everything, which is as many roundings more.
        """
        dy, channel = inputs["dy"].double(), [1, -1] + [1] * (inputs["dy"].dim() - 2)
        count = dy.numel() // dy.shape[1]
        weight = inputs["weight"].double().view(channel)
        bias = inputs["bias"].double().view(channel) if "bias" in inputs else torch.zeros_like(weight)
        x_hat = (reference["y"] - bias) / weight
        levels = sqrt(1 + log2(count) / 3)
        sums = {"dw": (dy * x_hat, levels), "db": (dy, levels)}
        found = {n: k * _ratio(terms, reference[n], None) for n, (terms, k) in sums.items() if n in reference}
        for name in ("y", "y_eval"):
            if name in reference:
                terms = torch.hypot(reference[name] - bias, bias.expand_as(reference[name]))
                found[name] = _ratio(terms, reference[name], self.statistics_dim)
        size = float(inputs["x"].double().nan_to_num(0.0, 0.0, 0.0).square().mean().sqrt())
        underflow = 1.0 + (2.0**-150 / size) / 2.0**-24 if size else 1.0
        found = {"mean": 1.0} | {name: max(value, 1.0) for name, value in found.items()}
        return {name: value * (underflow if name in ("mean", "dw") else 1.0) for name, value in found.items()}

    def dtypes(self, inputs: Inputs) -> dict[str, torch.dtype]:
        """The dtype that each output must come in: its own input's, or that of the input it is a gradient of."""
        of = {"y": "x", "y_eval": "x", "dx": "x", "dw": "weight", "db": "bias"}
        of |= {name: name for name in ("running_mean", "running_var")}
        return {output: inputs[name].dtype for output, name in of.items() if name in inputs}


def _ratio(terms: torch.Tensor, total: torch.Tensor, statistics_dim: int | None) -> float:
    """|terms| / |total| over what is finite, by statistic if there is one; 1 where the total is zero or nothing."""

    def energy(t: torch.Tensor) -> torch.Tensor:
        t = torch.where(t.isfinite(), t, 0.0).square()
        return t.sum() if statistics_dim is None else t.movedim(statistics_dim, 0).flatten(1).sum(1)

    whole = energy(total)
    ratios = (energy(terms) / whole)[whole > 0]
    return float(ratios.mean().sqrt()) if ratios.numel() else 1.0


@cache
def operators() -> dict[str, Operator]:
    """Every operator by name, sorted."""
    modules = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    found = [importlib.import_module(f"{__name__}.{name}").OPERATOR for name in modules]
    return {operator.name: operator for operator in sorted(found, key=lambda o: o.name)}
