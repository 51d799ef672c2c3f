"""The operators that can be measured. Each module here declares those of one family as `OPERATORS`, and is found.

Declaring, listing and sweeping operators imports neither torch nor numpy, so that `--help` answers at once: they are
imported by the methods that draw inputs and compute references.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from functools import cache, cached_property
from math import log2, sqrt
from typing import TYPE_CHECKING, Any

from bench.cases.case import ITEM_BYTES, Case
from bench.cases.presets import Preset, model_presets

if TYPE_CHECKING:
    import torch

# Tensors by name: x, weight, dy and, where the operator has them, bias, running statistics, residual and others.
Inputs = dict[str, "torch.Tensor"]
# Float64 tensors by name: the outputs of every mode, and the statistics that forward saves for backward, one value for
# each statistic. Evaluation's y is y_eval.
Reference = dict[str, "torch.Tensor"]
# A functional form as normlib.functional has it.
Functional = Callable[..., Any]
# The same with a case's scalars bound: called with the case's input tensors by name, dy and dz left out, it returns y,
# or y and z.
Forward = Callable[..., Any]

# The input that an output has its dtype from, where that is not the input of its own name (a running statistic).
_DTYPE_OF = {"y": "x", "y_eval": "x", "z": "x", "dx": "x", "dresidual": "residual", "dw": "weight", "db": "bias"}


class Operator(ABC):
    """One operator: its axes, its inputs, its truth, how it is called, and what it must move.

    The defaults are those of a norm with a weight and a bias; a subclass is a family.
    """

    name: str  # batch_norm
    short: str  # bn, on the command line
    axes: tuple[str, ...]  # ("batch", "channels", "spatial"), in the order of x's shape, then options
    choices: Mapping[str, tuple[int | str, ...]] = {}  # the values that an option can have, where they are a few
    layouts: tuple[str, ...]
    modes: tuple[str, ...] = ("fwd", "bwd", "fwd_bwd")  # measured unless the preset or --mode says otherwise
    eps: float  # where a preset's grid has none
    statistics_dim: int  # the dimension of x that has one statistic for each index
    sweeps: Mapping[str, Preset]  # the presets that are no model's; every operator has smoke, quick and full

    norm: Operator | None = None  # of a fused operator, the plain norm that it contains
    parameters: tuple[str, ...] = ("weight", "bias")
    parameter_dim = 1  # the dimension of x that has one parameter for each index
    float32_parameters = False  # otherwise they have x's dtype
    # Running statistics -> the batch's statistic (in the reference's words) that training moves them towards.
    running: Mapping[str, str] = {}
    momentum = 0.1
    saved: tuple[str, ...] = ("mean", "rstd")  # the statistics that forward keeps for backward
    results: tuple[str, ...] = ("y",)
    # The modes in which a row, an index of x's first dimension, has results of its own whatever rows are beside it.
    rowwise: Collection[str] = ()
    activations: Mapping[str, int] = {"fwd": 2, "bwd": 3, "eval": 2}  # moved by one pass of each kind

    @cached_property
    def presets(self) -> Mapping[str, Preset]:
        """The sweeps, and those of the models that have this norm."""
        return {**self.sweeps, **model_presets(self.name, self.layouts)}

    @property
    def plain(self) -> Operator:
        """The norm itself, or the one that a fused operator contains."""
        return self.norm or self

    @abstractmethod
    def shape(self, axes: Mapping[str, int | str]) -> tuple[int, ...]:
        """The shape of x for one value of each axis; raises ValueError for values that make none."""

    def fitted(self, axes: dict[str, int | str], typed: Collection[str]) -> dict[str, int | str]:
        """The axes, with a preset's value changed where it does not fit the values that were `typed`."""
        return axes

    def smaller(self, case: Case) -> list[Case]:
        """Returns the case of the first row and that of the first third, if their results are those of the whole."""
        rows = case.shape[0] if case.mode in self.rowwise else 1
        return [case.of_rows(few) for few in sorted({1, rows // 3} - {0, rows})]

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Random inputs: x with an offset mean, dy, parameters that are neither ones nor zeros, running statistics."""
        from bench.cases.random_inputs import TORCH_DTYPES, RandomInputs, laid_out

        draw, dtype, size = RandomInputs(case, device, seed), TORCH_DTYPES[case.dtype], case.shape[self.parameter_dim]
        found = {
            "x": laid_out(draw.activations(case, self.statistics_dim), case.layout),
            "dy": laid_out(draw.normal(case.shape).to(dtype), case.layout),
            "weight": draw.uniform((size,), 0.5, 1.5),  # around 1, never 1: a weight that is left out must show
        }
        if "bias" in self.parameters:
            found["bias"] = draw.normal((size,))
        if not self.float32_parameters:
            found = {name: tensor.to(dtype) for name, tensor in found.items()}
        for name in self.running:
            found[name] = draw.normal((size,)) if name == "running_mean" else draw.uniform((size,), 0.5, 2.0)
        return found

    def drawn(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Returns `inputs` without any step that depends on values, so that tensors without memory can be drawn too."""
        return self.inputs(case, device, seed)

    @abstractmethod
    def truth(self, case: Case, inputs: Inputs) -> Reference:
        """The formula's results in float64, without the running statistics that `reference` moves by `momentum`."""

    def reference(self, case: Case, inputs: Inputs) -> Reference:
        """The truth in float64, from the inputs as rounded to the case's dtype."""
        found = self.truth(case, inputs)
        for name in self.running.keys() - found.keys():
            moved_to = found[self.running[name]]
            found[name] = (1 - self.momentum) * inputs[name].double() + self.momentum * moved_to
        return {name: found[name] for name in (*self._all_outputs(), *self.saved)}

    def arguments(self, case: Case) -> dict[str, Any]:
        """The scalars of the functional form, by the names of its parameters."""
        return {"eps": case.eps}

    def bind(self, case: Case, function: Functional) -> Forward:
        """The operator's functional form, as normlib.functional has it, with the case's scalars bound."""
        arguments = self.arguments(case)
        return lambda x, **tensors: function(x, **tensors, **arguments)

    def unfused(self, norm: Forward) -> Forward:
        """Returns what a library without the fused form runs, given the bound form of the norm that it contains."""
        return norm

    def bytes_moved(self, case: Case) -> int:
        """Bytes that must cross device memory: each activation once in a pass, what goes with a statistic or a channel.

        Forward reads x and writes y, backward reads x and dy and writes dx: the floor of a kernel that keeps its second
        sweep over x (and dy) on chip. Forward reads the parameters, moves the running statistics and writes what it
        saves; backward reads that and the weight and writes the parameters' gradients.
        """
        vector = case.shape[self.parameter_dim] * (ITEM_BYTES["fp32"] if self.float32_parameters else case.item_bytes)
        parameters, running, saved = len(self.parameters), len(self.running), 4 * self.saved_values(case)
        moved = {
            "fwd": (parameters + 2 * running) * vector + saved,
            "bwd": (1 + parameters) * vector + saved,
            "eval": (parameters + running) * vector,
        }
        passes = case.mode.split("_")
        return sum(self.activations[one] * case.activation_bytes + moved[one] for one in passes)

    @abstractmethod
    def saved_values(self, case: Case) -> int:
        """The number of float32 values that forward must keep for backward."""

    def outputs(self, mode: str) -> tuple[str, ...]:
        """Names of the reference's tensors that this mode produces."""
        gradients = ("dx", "dw", "db") if "bias" in self.parameters else ("dx", "dw")
        return {
            "fwd": (*self.results, *self.running),
            "bwd": gradients,
            "fwd_bwd": (*self.results, *gradients, *self.running),
            "eval": ("y_eval",),
        }[mode]

    def _all_outputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for mode in ("fwd_bwd", *self.modes) for name in self.outputs(mode)))

    def amplification(self, inputs: Inputs, reference: Reference) -> dict[str, float]:
        """The error of outputs that are sums, of two terms (y) or over x (dw, db), in roundings of their terms.

        n terms added pairwise in float32 err by some u sqrt(sum of terms^2) sqrt(1 + log2(n) / 3): each term's own
        rounding, and u / sqrt(3) at each of log2(n) levels. Over the sum itself that is about 1 where terms are
        independent of each other, and more where few sums are and their terms happen to cancel. In y, x_hat weight and
        the bias may cancel throughout a statistic; the mean over statistics carries the root mean square.

        A mean and the deviations under dw are as small as x. Where that is below float32's normal numbers, what is lost
        is not 2^-24 of a value but up to 2^-150 of everything, which is as many roundings more.
        """
        import torch

        dy, channel = inputs["dy"].double(), channels_of(inputs["dy"])
        levels = rounding_levels(dy.numel() // dy.shape[1])
        weight = inputs["weight"].double().view(channel)
        bias = inputs["bias"].double().view(channel) if "bias" in inputs else torch.zeros_like(weight)
        x_hat = (reference["y"] - bias) / weight
        sums = {"dw": dy * x_hat, "db": dy}
        found = {n: levels * ratio(terms, reference[n], None) for n, terms in sums.items() if n in reference}
        for name in ("y", "y_eval"):
            if name in reference:
                terms = torch.hypot(reference[name] - bias, bias.expand_as(reference[name]))
                found[name] = ratio(terms, reference[name], self.statistics_dim)
        size = float(inputs["x"].double().nan_to_num(0.0, 0.0, 0.0).square().mean().sqrt())
        underflow = 1.0 + (2.0**-150 / size) / 2.0**-24 if size else 1.0
        found = {"mean": 1.0} | {name: max(value, 1.0) for name, value in found.items()}
        return {name: value * (underflow if name in ("mean", "dw") else 1.0) for name, value in found.items()}

    def dtypes(self, inputs: Inputs) -> dict[str, torch.dtype]:
        """The dtype that each output must come in: its own input's, or that of the input it is a gradient of."""
        return {output: inputs[_DTYPE_OF.get(output, output)].dtype for output in self._all_outputs()}


def channels_of(x: torch.Tensor) -> list[int]:
    """The shape in which one value for each channel is broadcast over x."""
    return [1, -1] + [1] * (x.dim() - 2)


def rounding_levels(terms: int) -> float:
    """The growth of one rounding through the levels of a pairwise float32 sum, see `Operator.amplification`."""
    return sqrt(1 + log2(terms) / 3)


def ratio(terms: torch.Tensor, total: torch.Tensor, statistics_dim: int | None) -> float:
    """Returns |terms| / |total| over finite values, the root mean square over statistics if there are any.

    1 where the total is zero or empty.
    """
    import torch

    def energy(t: torch.Tensor) -> torch.Tensor:
        t = torch.where(t.isfinite(), t, 0.0).square()
        return t.sum() if statistics_dim is None else t.movedim(statistics_dim, 0).flatten(1).sum(1)

    whole = energy(total)
    ratios = (energy(terms) / whole)[whole > 0]
    return float(ratios.mean().sqrt()) if ratios.numel() else 1.0


@cache
def operators() -> dict[str, Operator]:
    """Every operator by name, sorted."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found: list[Operator] = [operator for module in modules for operator in module.OPERATORS]
    return {operator.name: operator for operator in sorted(found, key=lambda operator: operator.name)}
