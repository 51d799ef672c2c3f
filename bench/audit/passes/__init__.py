"""The passes of each operator, found by themselves: each module here defines the `PASSES` of one family, by operator.

A pass is one direction of an operator: the call of its launcher, and what the plan of that call declares.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from normlib.kernels.batch_norm.one_launch_plan import OncePlan
from normlib.kernels.batch_norm.plan import BatchNormPlan
from normlib.kernels.group_norm.plan import GroupNormPlan
from normlib.kernels.plan import Device
from normlib.kernels.row_norm.plan import RowBackwardPlan, RowPlan
from normlib.kernels.traffic import Traffic

# By name; what is not in it is not there, or not wanted. Outputs stand for their dtype.
Tensors = dict[str, Tensor]
Plan = RowPlan | RowBackwardPlan | BatchNormPlan | GroupNormPlan
Shaped = tuple[tuple[int, ...], torch.dtype]
PLAIN = ("x", "y", "dy", "dx")
EPS, MOMENTUM = 1e-5, 0.1  # no plan depends on them


@dataclass(frozen=True)
class Declared:
    """What a pass says that it will do: its plan, the kind of that in a word or two, and its launches in order."""

    kind: str
    plan: Plan
    launches: tuple[Traffic, ...]
    once: OncePlan | None = None  # batch norm's plan for one launch
    apart: str = ""  # why no plan has its sweeps side by side, where that is so


@dataclass(frozen=True)
class Pass:
    """One direction of an operator: the launcher's call, what it declares, and the tensors that it needs."""

    run: Callable[[Tensors, Device], object]
    declare: Callable[[Tensors, Device], Declared]
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Passes:
    """Of one operator: the tensors of its calls, and its passes by mode.

    `activations` are shaped as x; `vectors`, from x's shape and dtype, says which others have what shape and dtype.
    Modes are named as in bench.cases.case; `eval_bwd` is backward in evaluation. Statistics are kept in float32,
    or float64 for float64.
    """

    activations: tuple[str, ...]
    vectors: Callable[[tuple[int, ...], torch.dtype], Mapping[str, Shaped]]
    modes: Mapping[str, Pass]
    of: Callable[..., Passes] | None = None  # the same with other options (bench/cases/case.py) than the first


def sizes_of(t: Tensors) -> dict[str, int]:
    """Bytes of an element of each tensor, as declarations want them."""
    return {name: tensor.element_size() for name, tensor in t.items()}


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """What statistics of activations of this dtype are kept in."""
    return torch.promote_types(dtype, torch.float32)


def _found() -> dict[str, Passes]:
    modules = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    families: list[Mapping[str, Passes]] = [importlib.import_module(f"{__name__}.{name}").PASSES for name in modules]
    return dict(sorted((op, found) for family in families for op, found in family.items()))


# Of every operator by its name. Last, for the families import what stands above; and not at first use, when others may
# stand in the kernels' place (tests/mutants).
PASSES = _found()
