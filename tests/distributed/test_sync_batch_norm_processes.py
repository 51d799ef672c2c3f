"""Synchronized batch norm in two and four processes under gloo: float64 batch norm over the gathered batch."""

import pytest
import sync_checks as checks
import torch

pytestmark = pytest.mark.chance

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# How many of the batch each process has, and whether its channels are innermost.
SHARES = [
    *(((3, 3), False), ((2, 5), True), ((0, 4), False), ((4, 0), True)),
    *(((2, 2, 2, 2), True), ((1, 4, 2, 3), False), ((0, 3, 0, 5), True)),
]


@pytest.mark.parametrize(("shares", "channels_last"), SHARES, ids=str)
def test_any_shares_give_the_whole_batchs_results_with_the_same_bits_everywhere(pool, shares, channels_last):
    for dtype in DTYPES if len(shares) == 2 else DTYPES[:2]:  # how many processes there are is no matter of dtypes
        found = pool.run(checks.as_the_whole_batch, shares, (5, 6, 7), dtype, channels_last, 3.0, processes=len(shares))
        assert all(answer == found[0] for answer in found)


@pytest.mark.parametrize("dims", [(7,), (5, 11), (3, 4, 3, 2), (65, 7, 7), (1, 9)], ids=str)
def test_any_rank_of_input(pool, dims):
    pool.run(checks.as_the_whole_batch, (4, 3), dims, torch.float32, False, 1.0, processes=2)


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_float32_errors_do_not_grow_with_the_mean(pool, offset):
    pool.run(checks.as_the_whole_batch, (0, 5, 2, 4), (8, 9, 9), torch.float32, False, offset)


def test_two_runs_give_the_same_bits(pool):
    runs = [pool.run(checks.as_the_whole_batch, (1, 4, 2, 3), (5, 6), torch.float32, False, 3.0) for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_batch_that_is_empty_everywhere_leaves_the_buffers(pool):
    pool.run(checks.all_empty)


def test_eval_gathers_nothing(pool):
    pool.run(checks.in_eval, processes=2)


def test_options_of_the_layer(pool):
    pool.run(checks.options, processes=2)


def test_mistakes_raise_pytorchs_errors_and_change_nothing(pool):
    pool.run(checks.refusals, processes=2)


def test_torch_compile_takes_it_whole(pool):
    pool.run(checks.compiled, processes=2)


def test_two_processes_under_ddp_train_as_one_with_the_whole_batch(pool):
    for together, alone in pool.run(checks.trained, processes=2):
        assert together == pytest.approx(alone, rel=1e-12)  # float64's 20 roundings a step, 20 steps
        assert together[-1] < together[0] / 2


@pytest.mark.gpu
def test_results_are_those_of_pytorchs_layer(pool):
    pool.run(checks.as_pytorchs, processes=2)
