"""The textbook's formulas: right where the mean is small, and wrong where their articles should have said so."""

import pytest
from provider_cells import CPU, problem

from bench.cases.case import Case
from bench.cases.operators import operators
from bench.measure import cell
from bench.measure.providers import Unsupported, providers

SHAPES = {"batch_norm": (8, 6, 4, 4), "layer_norm": (6, 128)}


def errors(name, op, offset):
    """rel_l2_error of every tensor in float32."""
    case = Case(op, SHAPES[op], (), "fp32", operators()[op].layouts[0], "fwd_bwd", 1e-5, "offset", offset)
    problem = cell.Problem(case.problem, cell.RunSettings(CPU, 0, "", providers()["torch"], operators()))
    record = problem.judge(case, providers()[name])
    return {e.tensor: e.rel_l2_error for e in record.errors}, record.status


@pytest.mark.parametrize("op", SHAPES)
@pytest.mark.parametrize("name", ["one_pass", "two_pass", "welford"])
def test_a_formula_is_right_at_a_small_mean(name, op):
    found, _ = errors(name, op, 1.0)
    # A handful of float32 roundings, some of the variance's; every tensor would be far off if the formula were wrong.
    assert max(found.values()) < 2e-6


@pytest.mark.parametrize("op", SHAPES)
def test_one_pass_loses_everything_at_a_mean_of_ten_thousand(op):
    found, status = errors("one_pass", op, 1e4)
    assert status == "wrong" and not found["y"] < 0.1


@pytest.mark.parametrize("op", SHAPES)
@pytest.mark.parametrize("name", ["two_pass", "welford"])
def test_two_passes_and_welford_keep_the_means_own_error(name, op):
    found, status = errors(name, op, 1e4)
    # float32 rounds a mean of 1e4 by up to 5e-4, of a deviation of 1.
    assert status == "wrong" and 1e-5 < found["y"] < 1e-3


@pytest.mark.parametrize("op", SHAPES)
@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_normlibs_error_does_not_grow(op, offset):
    found, status = errors("normlib", op, offset)
    small, _ = errors("normlib", op, 1.0)
    assert status == "ok"
    for tensor, error in found.items():
        assert error <= 3 * max(small[tensor], 2.0**-24), tensor


@pytest.mark.parametrize("name", ["one_pass", "two_pass", "welford"])
def test_a_formula_serves_only_training_of_batch_norm_and_layer_norm(name):
    for op, operator in operators().items():
        for mode in operator.modes:
            if op not in SHAPES or mode == "eval":
                with pytest.raises(Unsupported):
                    providers()[name].build(*problem(op, mode))
