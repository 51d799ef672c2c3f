"""PyTorch's own operators keep to the contract of every mode, whatever they do inside."""

import pytest
import torch

from bench.cases import sweep
from bench.cases.operators import operators
from bench.measure import cell
from bench.measure.providers import providers

CPU = torch.device("cpu")
LAYOUTS = sweep.cases(sweep.parse({"op": "all", "preset": "smoke", "dtype": "fp32"}, operators(), "smoke"), operators())
# One case an operator, layout and mode: what is done inside does not depend on the size.
CASES = {(case.op, case.layout, case.mode): case for case in reversed(LAYOUTS)}


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.label.replace(" ", "-"))
def test_pytorchs_operator_keeps_to_the_contract(case):
    problem = cell.Problem(case.problem, cell.RunSettings(CPU, 0, "torch", providers()["torch"], operators()))
    record = problem.judge(case, providers()["torch"])
    assert (record.status, record.reason) == ("ok", ""), record.reason
    assert record.ran
