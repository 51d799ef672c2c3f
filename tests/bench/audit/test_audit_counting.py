"""The traffic that launches declare equals what the interpreter counts; an error of one element is found."""

from collections import defaultdict

import pytest
import torch
from every_kernel import KERNELS

from bench.audit import counting
from bench.audit.calls import DEVICE, Call, audited, small_calls
from normlib.kernels import reduction
from normlib.kernels.batch_norm import sweeps
from normlib.kernels.row_norm import launch as row_norm
from normlib.kernels.traffic import Moves

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts in the interpreter, which a GPU rules out")


def each(*modes, plans):
    return {(mode, plan) for mode in modes for plan in plans}


EVALUATION = each("eval", "eval_bwd", plans=("one sweep",))
STREAMING = each("fwd", "bwd", plans=("streaming",))
RESIDENT = each("fwd", "bwd", plans=("resident",))
ALONE = each("fwd", "bwd", plans=("one launch",))
ROWS = each("fwd", "bwd", plans=("rows in registers", "loop over a row"))
# The plans that every operator has, and so those that must be counted.
PLANS = {
    "batch_norm": RESIDENT | STREAMING | EVALUATION,
    **dict.fromkeys(("batch_norm_relu", "batch_norm_add_relu"), STREAMING | EVALUATION),
    **dict.fromkeys(("batch_renorm", "lp_norm", "noisy_batch_norm", "sequence_batch_norm"), STREAMING | EVALUATION),
    "sync_batch_norm": STREAMING,  # no launch waits for another process; evaluation is batch norm's
    "group_norm": STREAMING | ALONE,
    "instance_norm": STREAMING | ALONE | EVALUATION,
    "weight_norm": ROWS,  # no row needs another's results, and so no barrier
    **dict.fromkeys(
        ("layer_norm", "layer_norm_add", "partial_rms_norm", "rms_norm", "rms_norm_add"),
        ROWS | each("fwd", "bwd", plans=("slices, barrier",)),
    ),
}


def test_every_byte_that_a_kernel_moves_is_declared():
    kernels, plans = set(), defaultdict(set)
    for call, device in small_calls(audited()):
        for count in counting.counts(call, device):
            assert count.problems == [], f"{count.call} {count.mode}"
            kernels.add(count.counted.kernel)
            plans[count.op].add((count.mode, count.plan))
    assert kernels == KERNELS
    assert plans == PLANS


def problems_of(op):
    call = Call(op, (3, 4), "fp32", "rows" if op == "layer_norm" else "nchw")
    return [problem for count in counting.counts(call, DEVICE) for problem in count.problems]


@pytest.mark.parametrize("op", ["layer_norm", "batch_norm"])
def test_a_declaration_that_forgets_one_element_is_found(op, monkeypatch):
    def forgetful(plan, loads, stores, parts=(), *rest, **more):
        return Moves(plan, loads, stores, {**dict(parts), "y": 11, "dx": 11}, *rest, **more)

    for module in (row_norm, sweeps):
        monkeypatch.setattr(module, "Moves", forgetful)
    problems = problems_of(op)
    assert any("moves other bytes of y" in problem for problem in problems)
    assert any("moves other bytes of dx" in problem for problem in problems)


def test_a_launch_that_is_not_declared_is_found(monkeypatch):
    def launch_undeclared(kernel, grid, /, *arguments, moves, **constants):
        kernel[grid](*arguments, **constants)

    monkeypatch.setattr(reduction, "launch", launch_undeclared)
    assert problems_of("layer_norm") == ["_sum_partials_kernel was launched, no launch is declared"]
