"""Compiled kernels give the right results, the same in every order, without a race, deadlock or stray access."""

import pytest

from ptx.cases import Case, every_case, one_of_each_plan

SAMPLE = list(one_of_each_plan())
CASES = [*SAMPLE, *(pytest.param(case, marks=pytest.mark.ptx) for case in every_case() if case not in {*SAMPLE})]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled_kernels_are_right_in_every_order(case, compiling, record_property):
    wrong, found = compiling(Case.judged, case)
    record_property("ptx", [*["wrong"] * bool(wrong), *sorted({kind for kind, _, _ in found})])
    assert not wrong and not found, "\n".join([*wrong, *(f"{': '.join(what)} ({n})" for what, n in found.items())])
