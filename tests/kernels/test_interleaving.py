"""The newer operators have the same bits however their programs are interleaved: no sum goes by who comes first."""

import pytest
import torch
import triton
import triton.language as tl
from interleaving import interleaved
from launches import CALLS, RAGGED, Call

from normlib.kernels.numerics import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED.value, reason="orders the programs of Triton's interpreter")
SEEDS = (1, 2)
# What has files of its own in which programs are interleaved, test_one_launch.py and test_sliced_rows.py.
ELSEWHERE = ("batch_norm", "layer_norm")
# The ragged calls, and what they leave out: a channel's runs split channels-last, and part of a row.
CASES = [call for call in RAGGED if call.operator not in ELSEWHERE] + [
    Call("group_norm_of_5", (2, 10, 700), multiprocessors=9, layout="channels-last"),
    Call("lp_norm_1", (3, 5, 11), torch.float16, 2),
    Call("partial_rms_norm", (7, 1000), torch.float16, 3),
]


def results(call):
    torch.manual_seed(0)
    return {name: t.contiguous().view(torch.uint8) for name, t in call.run(torch.device("cpu")).items()}


@pytest.mark.parametrize("call", CASES, ids=str)
def test_an_operator_has_the_same_bits_however_its_programs_are_interleaved(call):
    expected = results(call)
    for seed in SEEDS:
        with interleaved(seed) as turns:
            found = results(call)
        assert max(turns) > 0
        assert [name for name, t in found.items() if not torch.equal(t, expected[name])] == []


def test_no_operator_is_left_out():
    # The orders of lp_norm differ in what is added up; in evaluation nothing is.
    elsewhere = {"batch_norm", "layer_norm", "rms_norm", "lp_norm", "group_norm"}
    every = {call.operator for call in CALLS if not call.operator.startswith(tuple(elsewhere))}
    assert every - {call.operator for call in CASES} == set()


@pytest.mark.chance
def test_a_sum_by_whoever_comes_first_would_fail_that_test():
    x, sums = torch.randn(16) * torch.logspace(0, 6, 16), []
    for seed in range(5):
        total = torch.zeros(1)
        with interleaved(seed):
            _add_up[(16,)](total, x)
        sums.append(total.item())
    assert len(set(sums)) > 1


@triton.jit
def _add_up(total_ptr, x_ptr):
    tl.atomic_add(total_ptr, tl.load(x_ptr + tl.program_id(0)))
