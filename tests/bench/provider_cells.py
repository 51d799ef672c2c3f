"""Small cells of every operator for tests of providers, and the faults of a provider's outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.operators import Inputs, operators
from bench.measure import accuracy

CPU = torch.device("cpu")
# By the operator's first axis.
_SHAPES = {"batch": (3, 6, 4, 4), "tokens": (6, 40), "units": (6, 40), "time": (4, 3, 10)}
FLOAT32_ERROR = 1e-6  # relative: a few roundings, at these shapes


def problem(op: str, mode: str, dtype: str = "fp32", layout: str | None = None) -> tuple[Case, Inputs]:
    operator = operators()[op]
    case = Case(op, _SHAPES[operator.axes[0]], (), dtype, layout or operator.layouts[-1], mode)
    return case, operator.inputs(case, CPU, 0)


def copies(inputs: Inputs) -> Inputs:
    return {name: tensor.clone() for name, tensor in inputs.items()}


def errors_of(case: Case, inputs: Inputs, outputs: dict[str, Tensor]) -> list[str]:
    """The faults of a float32 cell's outputs, one line for each tensor."""
    operator = operators()[case.op]
    truth = operator.reference(case, inputs)
    wanted = {name: truth[name] for name in operator.outputs(case.mode)}
    assert set(outputs) >= set(wanted)
    return [
        f"{error.tensor} {error.decided_by} {error.rel_l2_error}"
        for error in accuracy.check(outputs, wanted, operator.dtypes(inputs), None, operator.statistics_dim)
        if error.decided_by in ("missing", "masks_match") or (error.rel_l2_error or 0.0) > FLOAT32_ERROR
    ]
