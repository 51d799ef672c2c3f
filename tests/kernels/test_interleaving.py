"""The newer operators have the same bits however their programs are interleaved: no sum goes by who comes first."""

import pytest
import torch
import triton
import triton.language as tl
from interleaving import interleaved
from launches import CALLS, RAGGED, SmallCall

from bench.audit.calls import Call
from normlib.kernels.numerics import INTERPRETED
from normlib.kernels.plan import Device

pytestmark = pytest.mark.skipif(not INTERPRETED.value, reason="orders the programs of Triton's interpreter")
SEEDS = (1, 2)
# What has files of its own in which programs are interleaved, test_last_program.py and test_sliced_rows.py.
ELSEWHERE = ("batch_norm", "layer_norm")
# The ragged calls, and what they leave out: a channel's runs split channels-last, and part of a row.
CASES = [each for each in RAGGED if each.call.op not in ELSEWHERE] + [
    SmallCall(Call("group_norm", (2, 10, 700), "fp32", "nhwc", (), (("groups", 2),)), Device(9)),
    SmallCall(Call("lp_norm", (3, 5, 11), "fp16", "nchw", (), (("p", "1"),)), Device(2)),
    SmallCall(Call("partial_rms_norm", (7, 1000), "fp16", "rows"), Device(3)),
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
    # Sequences are batch norm's.
    elsewhere = ("batch_norm", "layer_norm", "rms_norm", "sequence_batch_norm")
    every = {each.call.op for each in CALLS if not each.call.op.startswith(elsewhere)}
    assert every - {each.call.op for each in CASES} == set()


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
