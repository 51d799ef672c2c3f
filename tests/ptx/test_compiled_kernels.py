"""Compiled kernels give the right results, the same in every order, without a race, deadlock or stray access."""

import pytest

from ptx.cases import Case, every_case, one_of_each_plan

SAMPLE = {str(case): case for case in one_of_each_plan()}
REST = {str(case): case for case in every_case() if str(case) not in SAMPLE}


@pytest.mark.parametrize("name", [*SAMPLE, *(pytest.param(name, marks=pytest.mark.ptx) for name in REST)])
def test_compiled_kernels_are_right_in_every_order(name, compiling, record_property):
    wrong, found = compiling(Case.judged, (SAMPLE | REST)[name])
    record_property("ptx", [*["wrong"] * bool(wrong), *sorted({kind for kind, _, _ in found})])
    assert not wrong and not found, "\n".join([*wrong, *(f"{': '.join(what)} ({n})" for what, n in found.items())])
