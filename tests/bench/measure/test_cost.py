"""About how long a case takes: a rule of thumb that grows with what makes a case slow."""

from dataclasses import replace

import pytest
import torch

from bench.cases import sweep
from bench.cases.operators import operators
from bench.measure.cost import expected, expected_seconds

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
    one = expected_seconds(SMALL, ("torch",), GPU)
    assert expected_seconds(SMALL, ("cudnn", "torch", "transformer_engine"), GPU) == pytest.approx(3 * one)


def test_energies_take_half_a_second_a_cell_on_a_gpu():
    plain, energies = (expected([SMALL] * 4, ("torch", "cudnn"), GPU, energies=asked) for asked in (False, True))
    assert energies.measuring == pytest.approx(plain.measuring + 8 * 0.55)
    assert energies.starting == plain.starting


@pytest.mark.parametrize("name", ["normlib", "torch_compile", "liger"])
def test_what_compiles_takes_longer_on_a_gpu(name):
    assert expected_seconds(SMALL, ("torch", name), GPU) > expected_seconds(SMALL, ("torch", "cudnn"), GPU) + 0.5


def test_a_kernel_counts_once_however_many_cases_share_it():
    # Of rows of one width the kernels are the same for any number of rows that 16 divides.
    rows = [case(op="ln", tokens=str(n), hidden="1024", mode=mode) for n in (4096, 8192) for mode in ("fwd", "bwd")]
    costs = [expected(some, ("normlib",), GPU, (0, 0)) for some in (rows[:1], rows[:2], rows, [*rows, *rows])]
    # Forward; what backward sums up and what it merges as well.
    assert [cost.kernels for cost in costs] == [1, 3, 3, 3]
    assert costs[1].compiling == costs[2].compiling == costs[3].compiling == pytest.approx(3 * costs[0].compiling)
    others = [replace(row, dtype="bf16") for row in rows]
    assert expected([*rows, *others], ("normlib",), GPU, (0, 0)).kernels == 6


def test_forward_and_backward_alone_share_a_graph_and_a_training_step_has_its_own():
    modes = [replace(SMALL, mode=mode) for mode in ("fwd", "bwd", "fwd_bwd", "eval")]
    assert [expected(modes[:n], ("torch_compile",), GPU, (0, 0)).graphs for n in (1, 2, 3, 4)] == [1, 1, 2, 3]
    both, one = (expected([case], ("torch_compile",), GPU, (0, 0)).compiling for case in modes[::3])
    assert both > one  # evaluation has no backward
    hard = replace(SMALL, inputs="offset", offset=1e4)  # nothing is compiled for values
    assert expected([SMALL, hard], ("torch_compile",), GPU, (0, 0)).graphs == 1


def test_what_is_compiled_ahead_is_not_waited_for_unless_it_is_needed_at_once():
    cases = sweep.cases(sweep.parse({"op": "bn", "preset": "resnet50"}, OPERATORS, "resnet50"), OPERATORS)
    providers = ("normlib", "torch_compile")
    alone, helped, crowd = (expected(cases, providers, GPU, n) for n in ((0, 0), (1, 1), (10, 4)))
    assert alone.compiling > helped.compiling >= crowd.compiling > 0
    assert alone.measuring == helped.measuring == crowd.measuring
    first = expected(cases[:1], ("torch_compile",), GPU, (10, 4))
    assert first.compiling == expected(cases[:1], ("torch_compile",), GPU, (0, 0)).compiling


def test_the_total_has_everything():
    found = expected([SMALL], ("normlib", "torch_compile"), GPU, (0, 0))
    parts = found.starting, found.measuring, found.compiling, found.reporting
    assert min(parts) > 0 and found.total == pytest.approx(sum(parts))
    on_cpu = expected([SMALL], ("normlib",), CPU)
    assert (on_cpu.compiling, on_cpu.kernels, on_cpu.measuring) == (0, 0, expected_seconds(SMALL, ("normlib",), CPU))


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=lambda operator: operator.short)
def test_the_default_sweep_of_an_operator_takes_two_minutes_of_a_gpu(operator):
    cases = sweep.cases(sweep.parse({"op": operator.short}, OPERATORS, "quick"), OPERATORS)
    names = ("normlib", "torch", "torch_compile", "cudnn")
    assert 60 < expected(cases, names, GPU, (10, 4)).total <= 120  # of 16 cores


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
