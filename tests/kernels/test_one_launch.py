"""Batch norm in one launch is as right as in three, with the same bits whatever order its programs run in."""

import ctypes
from itertools import product

import interleaving
import pytest
import torch
import triton
import triton.language as tl
from errors import assert_right
from interleaving import Deadlock, interleaved
from triton.runtime.errors import InterpreterError

from bench.audit.calls import OFF_CHIP
from normlib import BatchNorm2d, reference
from normlib.kernels import counters
from normlib.kernels.batch_norm import launch as kernels
from normlib.kernels.batch_norm import on_chip as batch_norm_on_chip
from normlib.kernels.batch_norm import one_launch as batch_norm_once
from normlib.kernels.batch_norm import one_launch_plan
from normlib.kernels.batch_norm import plan as batch_norm_plan
from normlib.kernels.batch_norm import sweeps as batch_norm_launch
from normlib.kernels.host import device_of
from normlib.kernels.numerics import INTERPRETED
from normlib.kernels.plan import Device

interpreted = pytest.mark.skipif(not INTERPRETED.value, reason="orders the programs of Triton's interpreter")


def swept_twice(multiprocessors, l2, cooperative=True):
    return Device(multiprocessors, l2=l2, cooperative=cooperative, tuning=OFF_CHIP)


# Shape, layout, dtype, and a device on whose cache so many bytes of the first sweep may wait for the second:
# a group that is one program's; all groups at once; windows of groups, one after another; windows that run ahead.
# And what is held in registers: by one program, or by several with even and uneven shares.
CASES = {
    "alone": ((3, 37, 7, 7), False, torch.float32, swept_twice(1, 1 << 30, cooperative=False)),
    "alone, channels-last": ((3, 70, 5, 5), True, torch.bfloat16, swept_twice(1, 1 << 30, cooperative=False)),
    "all groups at once": ((5, 20, 16, 16), False, torch.float32, swept_twice(2, 1 << 30)),
    "one group at a time": ((9, 70, 10, 10), False, torch.float16, swept_twice(1, 300_000)),
    "half a line at a time": ((6, 40, 8, 8), True, torch.bfloat16, swept_twice(2, 50_000)),
    "groups ahead": ((5, 200, 6, 6), False, torch.float32, swept_twice(3, 1_200_000)),
    "groups ahead, channels-last": ((33, 136, 5, 5), True, torch.bfloat16, swept_twice(3, 1_000_000)),
    "uneven rounds": ((6, 80, 8, 8), False, torch.float64, swept_twice(2, 500_000)),
    "on chip, alone": ((2, 37, 7, 7), False, torch.float32, Device(1, l2=1 << 30)),
    "on chip, channels-last": ((6, 40, 8, 8), True, torch.bfloat16, Device(2, l2=50_000, cooperative=True)),
    "on chip, uneven shares": ((5, 20, 16, 16), False, torch.float32, Device(3, l2=1 << 30, cooperative=True)),
    "on chip, float64": ((7, 7, 9, 9), True, torch.float64, Device(3, l2=1 << 30, cooperative=True)),
}


def draw(shape, channels_last, dtype, where):
    def activation(offset):
        x = torch.randn(shape, dtype=torch.float64) * 2 + offset
        return (x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x).to(where, dtype)

    stats = torch.promote_types(dtype, torch.float32)
    return activation(3.0), activation(0.0), *(torch.randn(shape[1], dtype=stats, device=where) for _ in range(2))


def both_ways(x, dy, weight, bias, device):
    """Everything that a step of training computes, by name."""
    mean, var = torch.zeros_like(weight), torch.ones_like(weight)
    y, saved, rstd = kernels.batch_norm_forward(x, weight, bias, mean, var, 0.3, 1e-5, device)
    dx, dw, db = kernels.batch_norm_backward(dy, x, saved, rstd, weight, 1e-5, False, True, True, device)
    names = ("y", "mean", "rstd", "running_mean", "running_var", "dx", "dw", "db")
    return dict(zip(names, (y, saved, rstd, mean, var, dx, dw, db), strict=True))


def truth_of(x, dy, weight, bias):
    truth = reference.batch_norm(x, weight, bias, 1e-5, dy)
    running = {"running_mean": 0.3 * truth["mean"], "running_var": 0.7 + 0.3 * truth["var_unbiased"]}
    return truth | running


def once(case, tensors=1):
    shape, channels_last, dtype, device = CASES[case]
    p = batch_norm_plan.batch_norm(shape, channels_last, dtype.itemsize, device)
    return p, one_launch_plan.batch_norm_once(p, dtype.itemsize, tensors, device)


@pytest.fixture
def poisoned():
    """A partial result that is read before it is written is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_the_cases_cover_what_a_plan_can_be():
    found = [once(case, tensors) for case in CASES for tensors in (1, 2)]
    assert any(o.splits == 1 for _, o in found)
    assert any(o.splits > 1 and o.windows == p.groups > 1 for p, o in found)
    assert any(o.splits > 1 and o.windows == 1 < p.groups and not o.ahead for p, o in found)
    assert any(o.splits > 1 and o.windows > 1 and o.ahead for p, o in found)
    assert any(o.splits > 1 and p.groups % o.windows for p, o in found)
    for tensors in (1, 2):
        held = [o for _, o in (once(case, tensors) for case in CASES if case.startswith("on chip"))]
        assert all(o.kept for o in held)
        assert any(o.splits == 1 for o in held) and any(o.splits > 1 for o in held)
        assert any(o.tiled.tiles % o.splits for o in held), "shares that are not all the same"
        assert any(o.tiled.tiles < o.splits * o.kept for o in held), "programs with a tile less than they could hold"
    assert not any(once(case)[1].kept for case in CASES if not case.startswith("on chip"))


@interpreted
@pytest.mark.parametrize("case", CASES)
def test_one_launch_matches_float64_in_any_order(case, poisoned):
    shape, channels_last, dtype, device = CASES[case]
    x, dy, weight, bias = draw(shape, channels_last, dtype, "cpu")
    runs = []
    for seed in range(2):
        with interleaved(seed) as turns:
            runs.append(both_ways(x, dy, weight, bias, device))
        assert len(turns) == 2, "a launch forward and one backward"
    truth = truth_of(x, dy, weight, bias)
    for name, out in runs[0].items():
        assert torch.equal(out, runs[1][name]), f"{name} depends on the order"
        assert_right(out.sum(0) if name == "mean" else out, truth[name], name)


@pytest.fixture
def shared(monkeypatch):
    """Counters that all launches pass on to each other, as those of one stream do on a GPU."""
    tensor = torch.zeros(64, dtype=torch.int32)
    monkeypatch.setattr(batch_norm_launch, "counters", lambda n, device: tensor[:n])
    return tensor


@interpreted
@pytest.mark.parametrize("case", [case for case in CASES if "alone" not in case])
def test_counters_are_left_as_they_were_found(case, shared):
    shape, channels_last, dtype, device = CASES[case]
    tensors = draw(shape, channels_last, dtype, "cpu")
    for seed in range(2):
        with interleaved(seed) as turns:
            both_ways(*tensors, device)
        assert len(turns) == 2 and not shared.any()


@triton.jit
def _no_wait(counter, programs):
    tl.debug_barrier()


@triton.jit
def _wait_for_one_less(counter, programs):
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < programs - 1:
        pass


@triton.jit
def _wait_for_one_more(counter, programs):
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < programs + 1:
        pass


barriers = pytest.mark.parametrize(
    ("module", "case"),
    [(batch_norm_once, "all groups at once"), (batch_norm_on_chip, "on chip, uneven shares")],
    ids=["swept twice", "on chip"],
)


@interpreted
@barriers
@pytest.mark.parametrize("wait", [_no_wait, _wait_for_one_less])
def test_a_barrier_that_opens_early_is_noticed(wait, module, case, monkeypatch, poisoned):
    shape, channels_last, dtype, device = CASES[case]
    tensors = draw(shape, channels_last, dtype, "cpu")
    monkeypatch.setattr(module, "wait", wait)

    def notice(seed):
        with interleaved(seed):
            return any(out.isnan().any() for out in both_ways(*tensors, device).values())

    assert any(map(notice, range(4)))


@interpreted
@barriers
@pytest.mark.chance
def test_a_barrier_that_never_opens_is_noticed(module, case, monkeypatch):
    shape, channels_last, dtype, device = CASES[case]
    tensors = draw(shape, channels_last, dtype, "cpu")
    monkeypatch.setattr(module, "wait", _wait_for_one_more)
    monkeypatch.setattr(interleaving, "PATIENCE", 3000)  # an honest launch here takes some 300 turns
    with interleaved(0), pytest.raises(InterpreterError, match=Deadlock.__name__):
        both_ways(*tensors, device)


# On an H200: held on chip, windows of groups, windows that run ahead; a barrier for each.
ON_A_GPU = list(product([(32, 256, 14, 14), (32, 64, 56, 56), (7, 512, 28, 28)], [False, True]))
ON_A_GPU += [((128, 64, 56, 56), False)]
every_launch_on_a_gpu = pytest.mark.parametrize(("shape", "channels_last"), ON_A_GPU, ids=str)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@both_dtypes
@every_launch_on_a_gpu
def test_what_a_gpu_is_asked_has_a_barrier_there(shape, channels_last, dtype):
    for l2 in (50 << 20, 60 << 20):  # of an H200, by its data sheet and as PyTorch tells it
        h200 = Device(132, l2=l2, cooperative=True)
        found = one_launch_plan.batch_norm_once(
            batch_norm_plan.batch_norm(shape, channels_last, dtype.itemsize, h200), dtype.itemsize, 1, h200
        )
        assert found is not None and found.splits > 1


@pytest.mark.gpu
@pytest.mark.chance
@both_dtypes
@every_launch_on_a_gpu
def test_one_launch_on_a_gpu_matches_float64_and_itself(shape, channels_last, dtype, device):
    x, dy, weight, bias = draw(shape, channels_last, dtype, device)
    first = both_ways(x, dy, weight, bias, device_of(x))
    truth = truth_of(x, dy, weight, bias)
    for name, out in first.items():
        assert_right(out.sum(0) if name == "mean" else out, truth[name], name)
    for _ in range(50):
        again = both_ways(x, dy, weight, bias, device_of(x))
        assert all(torch.equal(out, again[name]) for name, out in first.items())


def all_zeros():
    return not any(slab.any() for slabs in counters._slabs.values() for slab in slabs)


@pytest.mark.gpu
@pytest.mark.chance
def test_launches_of_two_streams_and_of_a_graph_have_counters_of_their_own(device):
    tensors = draw((32, 256, 14, 14), False, torch.bfloat16, device)
    here = device_of(tensors[0])
    first = both_ways(*tensors, here)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both_ways(*tensors, here)
    streams = [torch.cuda.Stream() for _ in range(2)]
    for _ in range(20):
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                again = both_ways(*tensors, here)
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(out, again[name]) and torch.equal(out, captured[name]) for name, out in first.items())
    assert all_zeros()


def step(norm, x, dy):
    x = x.detach().requires_grad_()
    y = norm(x)
    return y, *torch.autograd.grad(y, (x, *norm.parameters()), dy)


@pytest.fixture
def waiting(device):
    """(a batch norm, x and dy of it) whose passes have a barrier."""
    x, dy = (torch.randn(32, 256, 14, 14, device=device, dtype=torch.bfloat16) for _ in range(2))
    here = device_of(x)
    found = one_launch_plan.batch_norm_once(batch_norm_plan.batch_norm(tuple(x.shape), False, 2, here), 2, 1, here)
    if found is None or found.splits == 1:
        pytest.skip("a device that promises no barrier")
    return BatchNorm2d(256, track_running_stats=False).to(device), x, dy


@pytest.mark.gpu
def test_reduce_overhead_has_the_same_bits_and_leaves_zeros(waiting):
    norm, x, dy = waiting
    compiled = torch.compile(norm, mode="reduce-overhead")
    first = step(norm, x, dy)
    for _ in range(6):  # a warm-up, a capture, replays
        torch.compiler.cudagraph_mark_step_begin()
        again = step(compiled, x, dy)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    torch.cuda.synchronize()
    assert all_zeros()


@pytest.mark.gpu
@pytest.mark.skipif(torch.version.hip is not None, reason="streams of CUDA")
def test_a_stream_of_the_driver_is_known_as_such(waiting):
    norm, x, dy = waiting
    handle = ctypes.c_void_p()
    assert int(torch.cuda.cudart().cudaStreamCreate(ctypes.addressof(handle))) == 0
    first = step(norm, x, dy)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        assert not counters.external(x.device, torch.cuda.current_stream().cuda_stream)
    with torch.cuda.stream(torch.cuda.ExternalStream(handle.value)):
        assert counters.external(x.device, handle.value)
        again = step(norm, x, dy)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert (x.device, handle.value) not in counters._of_stream
