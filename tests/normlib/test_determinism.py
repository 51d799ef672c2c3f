"""The same bits every time, and for a row the same bits whatever lies beside it."""

import random
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from math import inf

import pytest
import torch
import triton
import triton.language as tl

from normlib import functional as N
from normlib.kernels.batch_norm import launch as batch_norm
from normlib.kernels.batch_norm import lp as lp_norm
from normlib.kernels.batch_norm import noisy as noisy_batch_norm
from normlib.kernels.batch_norm import renorm as batch_renorm
from normlib.kernels.group_norm import instance as instance_norm
from normlib.kernels.group_norm import launch as group_norm
from normlib.kernels.numerics import INTERPRETED
from normlib.kernels.plan import INTERPRETER, Device
from normlib.kernels.row_norm import launch as row_norm
from normlib.kernels.row_norm import plan as row_plan
from normlib.kernels.weight_norm import launch as weight_norm

H200 = Device(132)


@contextmanager
def programs_in_any_order(seed):
    """The programs of each launch run in another order, as on a GPU, where the hardware does it by itself."""
    if not INTERPRETED.value:
        yield
        return
    from triton.runtime.interpreter import interpreter_builder as interpreter

    visit, draw, waiting = interpreter.set_grid_idx, random.Random(seed), []

    def visit_another(*_):
        if not waiting:
            x, y, z = interpreter.grid_dim
            waiting.extend((i, j, k) for i in range(x) for j in range(y) for k in range(z))
            draw.shuffle(waiting)
        visit(*waiting.pop())

    interpreter.set_grid_idx = visit_another
    try:
        yield
    finally:
        interpreter.set_grid_idx = visit
    assert not waiting, "a program was left out"


def row_norm_case(centred, partial_n=None):
    def run(x, dy, weight, bias):
        n, dtype = weight.shape[0], weight.dtype
        y, mean, rstd = row_norm.forward(x, weight, bias, 1e-5, centred, n, partial_n=partial_n or n)
        given = (dy, x, mean, rstd, weight, centred, n, dtype, dtype, True)
        gradients = row_norm.backward(*given, partial_n=partial_n or n)
        return {"y": y, "mean": mean, "rstd": rstd} | dict(zip(("dx", "dw", "db"), gradients, strict=True))

    return run


def batch_norm_case(training):
    def run(x, dy, weight, bias):
        mean, var = saved = torch.zeros_like(weight), torch.ones_like(weight)
        if training:
            y, *saved = batch_norm.batch_norm_forward(x, weight, bias, mean, var, 0.3, 1e-5)
        else:
            y = batch_norm.batch_norm_eval_forward(x, weight, bias, mean, var, 1e-5)
        gradients = batch_norm.batch_norm_backward(dy, x, *saved, weight, 1e-5, not training, True, True)
        found = {"y": y, "running_mean": mean, "running_var": var, "mean": saved[0], "rstd": saved[1]}
        return found | dict(zip(("dx", "dw", "db"), gradients, strict=True))

    return run


def batch_renorm_case(x, dy, weight, bias):
    mean, std = torch.zeros_like(weight), torch.ones_like(weight)
    y, *saved = batch_renorm.batch_renorm_forward(x, weight, bias, mean, std, 0.3, 1e-5, 3.0, 5.0)
    gradients = batch_renorm.batch_renorm_backward(dy, x, *saved, True, True)
    found = {"y": y, "running_mean": mean, "running_std": std, "rstd": saved[1], "renorm": saved[2]}
    return found | dict(zip(("dx", "dw", "db"), gradients, strict=True))


def noisy_batch_norm_case(x, dy, weight, bias):
    mean, var, seed = torch.zeros_like(weight), torch.ones_like(weight), torch.tensor(7, device=x.device)
    drawn = (0.3, 1e-5, seed, True, [0.5, 1.25, 0.1, 0.1])
    y, *saved = noisy_batch_norm.noisy_batch_norm_forward(x, weight, bias, mean, var, *drawn)
    given = (dy, x, *saved[:2], weight, 0.0, False, True, True)
    gradients = batch_norm.batch_norm_backward(*given, noise=saved[2], seed=seed)
    found = {"y": y, "running_mean": mean, "running_var": var, "noise": saved[2]}
    return found | dict(zip(("dx", "dw", "db"), gradients, strict=True))


def group_norm_case(groups, device=None):
    def run(x, dy, weight, bias):
        y, mean, rstd = group_norm.group_norm_forward(x, groups, weight, bias, 1e-5, device)
        given = (groups, mean, rstd, weight, weight.dtype, weight.dtype, True, device)
        gradients = group_norm.group_norm_backward(dy, x, *given)
        return {"y": y, "mean": mean, "rstd": rstd} | dict(zip(("dx", "dw", "db"), gradients, strict=True))

    return run


def instance_norm_case(x, dy, weight, bias):
    mean, var = torch.zeros_like(weight), torch.ones_like(weight)
    y, *_ = instance_norm.instance_norm_forward(x, weight, bias, mean, var, 0.3, 1e-5)
    return {"y": y, "running_mean": mean, "running_var": var}


def sequence_batch_norm_case(x, dy, weight, bias):
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y = N.sequence_batch_norm(leaves[0], None, None, *leaves[1:], True, lengths=range(len(x)))
    return dict(zip(("y", "dx", "dw", "db"), (y, *torch.autograd.grad(y, leaves, dy)), strict=True))


def lp_norm_case(p):
    def run(x, dy, weight, bias):
        mean, norm = torch.zeros_like(weight), torch.ones_like(weight)
        y, *saved = lp_norm.lp_norm_forward(x, weight, bias, mean, norm, p, 0.3, 1e-5)
        gradients = lp_norm.lp_norm_backward(dy, x, *saved, weight, p, 1e-5, False, True, True)
        found = {"y": y, "running_mean": mean, "running_norm": norm, "mean": saved[0], "rstd": saved[1]}
        return found | dict(zip(("dx", "dw", "db"), gradients, strict=True))

    return run


def weight_norm_case(x, dy, weight, bias):
    y, norm = weight_norm.forward(x, x[:, 0])
    gradients = weight_norm.backward(dy, x, norm, x[:, 0], True, True)
    return {"y": y, "norm": norm} | dict(zip(("dx", "dw"), gradients, strict=True))


# The interpreter's orders are drawn: of two programs, all of these are the same once in 2^20 times.
TIMES = 20 if INTERPRETED.value else 100
FEWER = 2 if INTERPRETED.value else 100  # where tests/kernels/test_interleaving.py draws further orders
# How it runs, the shape (several programs to nearly every launch, in the interpreter too), and how often: long rows
# take the interpreter a second.
CASES = {
    "layer_norm": (row_norm_case(True), (40, 100), TIMES),
    "rms_norm": (row_norm_case(False), (40, 100), TIMES),
    "layer_norm, long rows": (row_norm_case(True), (2, 16400), 2 if INTERPRETED.value else TIMES),
    "weight_norm": (weight_norm_case, (40, 100), TIMES),
    "batch_norm, training": (batch_norm_case(True), (2, 6, 5, 5), TIMES),
    "batch_norm, evaluation": (batch_norm_case(False), (2, 6, 5, 5), TIMES),
    "lp_norm, p = 1": (lp_norm_case(1.0), (2, 6, 5, 5), TIMES),
    "lp_norm, p = inf": (lp_norm_case(inf), (2, 6, 5, 5), TIMES),
    "partial_rms_norm": (row_norm_case(False, 7), (40, 100), FEWER),
    "batch_renorm": (batch_renorm_case, (2, 6, 5, 5), FEWER),
    "noisy_batch_norm": (noisy_batch_norm_case, (2, 6, 5, 5), FEWER),
    "sequence_batch_norm": (sequence_batch_norm_case, (6, 6, 6), FEWER),
    "group_norm": (group_norm_case(3), (4, 6, 5, 5), FEWER),
    "group_norm, split": (group_norm_case(2, Device(16)), (1, 6, 30, 30), FEWER),
    "instance_norm": (instance_norm_case, (4, 6, 5, 5), FEWER),
}


def bits(t):
    return t.detach().contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_output_has_the_same_bits_every_time(name, dtype, device):
    run, shape, times = CASES[name]
    x, dy = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[1], device=device).to(dtype) for _ in range(2))
    first = run(x, dy, weight, bias)
    for seed in range(times):
        with programs_in_any_order(seed):
            again = run(x, dy, weight, bias)
        assert [k for k in first if not torch.equal(bits(first[k]), bits(again[k]))] == []


@pytest.mark.skipif(not INTERPRETED.value, reason="the order of a GPU's programs is its own")
def test_an_atomic_sum_would_fail_that_test():
    x = torch.randn(64) * torch.logspace(0, 6, 64)
    sums = []
    for seed in range(10):
        total = torch.zeros(1)
        with programs_in_any_order(seed):
            _add_up[(64,)](total, x)
        sums.append(total.item())
    assert len(set(sums)) > 1


@triton.jit
def _add_up(total_ptr, x_ptr):
    tl.atomic_add(total_ptr, tl.load(x_ptr + tl.program_id(0)))


# A width for each variant of the plan, and the most rows of it that the interpreter sums in a second or two.
WIDTHS = {
    4: 8192,  # one chunk a row, many rows a program
    600: 64,  # several chunks a row, several rows a program
    7168: 8,  # one row a program
    12288: 3,  # forward in registers, backward in a loop
    20000: 3,  # both in a loop
}
ROWS = (1, 2, 3, 5, 8, 17, 64, 257, 1024, 8192)


def row_bits(name, x, dy, weight, bias):
    x = x.detach().requires_grad_()
    y = getattr(N, name)(x, weight.shape, weight, bias=bias, eps=1e-5)
    return bits(y), bits(torch.autograd.grad(y, x, dy)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_a_row_does_not_depend_on_how_many_there_are_or_on_its_place(name, width, dtype, device):
    most = WIDTHS[width]
    x, dy = (torch.randn(most, width, device=device).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(width, device=device).to(dtype) for _ in range(2))
    whole = row_bits(name, x, dy, weight, bias)
    for rows in ROWS:
        if rows < most:
            part = row_bits(name, x[:rows], dy[:rows], weight, bias)
            assert all(torch.equal(a, b[:rows]) for a, b in zip(part, whole, strict=True)), f"{rows} of {most} rows"
    places = torch.randperm(most, device=device)
    moved = row_bits(name, x[places], dy[places], weight, bias)
    assert all(torch.equal(a, b[places]) for a, b in zip(moved, whole, strict=True)), "rows in another order"


def test_the_widths_are_one_for_each_variant_of_the_plan():
    def variant(width):
        forward, backward = (
            row_plan.row_forward(width, 4, INTERPRETER),
            row_plan.row_backward(3, width, 4, INTERPRETER).rows,
        )
        return tuple((min(p.chunks, 2), p.block_m > 1) for p in (forward, backward))

    assert [variant(width) for width in WIDTHS] == [
        ((1, True), (1, True)),
        ((2, True), (2, True)),
        ((2, False), (2, False)),
        ((2, False), (0, False)),
        ((0, False), (0, False)),
    ]


@pytest.mark.parametrize("device", [H200, INTERPRETER], ids=["H200", "interpreter"])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_no_plan_of_a_row_looks_at_how_many_there_are(itemsize, device):
    assert list(signature(row_plan.row_forward).parameters) == ["n", "itemsize", "device", "tensors", "waits"]
    for width in (1, 3, 24, 100, 511, 512, 600, 1000, 1600, 4096, 7168, 8192, 12288, 16384, 20000, 131072):
        alone, beside = (row_plan.row_forward(width, itemsize, device, tensors) for tensors in (2, 4))
        assert replace(alone, programs=0) == replace(beside, programs=0)
        plans = [row_plan.row_backward(m, width, itemsize, device) for m in (*ROWS, 132, 528, 10**6, 2**31 - 1)]
        # `programs` may differ: it is how rows are dealt out, and a row's dx is one program's work.
        assert len({(str(p.rows), p.block_rows, p.block_columns) for p in plans}) == 1
