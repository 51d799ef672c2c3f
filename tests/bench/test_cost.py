"""About how long a case takes: a rule of thumb that grows with what makes a case slow."""

from dataclasses import replace

import pytest
import torch

from bench import sweep
from bench.cost import expected_seconds
from bench.operators import operators

CPU, GPU = torch.device("cpu"), torch.device("cuda")
OPERATORS = operators()


def case(**given):
    return sweep.cases(sweep.parse({"mode": "fwd", "dtype": "fp16", **given}, OPERATORS, "smoke"), OPERATORS)[0]


SMALL = case(op="bn", batch="2", channels="64", spatial="7x7", layout="nchw")


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize(
    "larger",
    [
        case(op="bn", batch="64", channels="64", spatial="56x56", layout="nchw"),
        replace(SMALL, mode="fwd_bwd"),
    ],
    ids=lambda c: c.label,
)
def test_more_elements_and_more_passes_take_longer(device, larger):
    assert expected_seconds(larger, ("normlib",), device) > expected_seconds(SMALL, ("normlib",), device) > 0


def test_every_provider_takes_its_time_on_a_gpu():
    one = expected_seconds(SMALL, ("normlib",), GPU)
    assert expected_seconds(SMALL, ("normlib", "torch", "cudnn"), GPU) == pytest.approx(3 * one)


def test_without_a_gpu_it_is_the_interpreter_that_takes_the_time():
    alone, beside = (expected_seconds(SMALL, names, CPU) for names in (("torch",), ("torch", "normlib")))
    assert beside > 2 * alone


def test_columns_are_merged_backward_and_in_batch_norm_forward_as_well():
    few, many = ({"op": "ln", "tokens": str(2**12 // n), "hidden": str(n)} for n in (64, 2048))
    forward = [expected_seconds(case(**shape), ("normlib",), CPU) for shape in (few, many)]
    backward = [expected_seconds(case(**shape, mode="bwd"), ("normlib",), CPU) for shape in (few, many)]
    assert forward[0] == forward[1]
    assert backward[1] > 3 * backward[0]


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_every_operator_and_mode_has_an_estimate(device):
    for operator in OPERATORS.values():
        for each in sweep.cases(sweep.parse({"op": operator.short}, OPERATORS, "smoke"), OPERATORS):
            assert 0 < expected_seconds(each, ("normlib", "torch"), device) < 10
