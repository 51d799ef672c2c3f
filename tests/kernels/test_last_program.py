"""The last program of a channel group merges all of its splits: the same bits whatever order programs run in."""

import ctypes
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from errors import assert_right
from interleaving import interleaved
from shadow_memory import CONTENDED, watching

from normlib import BatchNorm2d, reference
from normlib.kernels import host as counters
from normlib.kernels.batch_norm import launch as kernels
from normlib.kernels.batch_norm import plan as batch_norm_plan
from normlib.kernels.batch_norm import streaming, sweeps
from normlib.kernels.host import device_of
from normlib.kernels.numerics import INTERPRETED
from normlib.kernels.plan import Device, Tuning

interpreted = pytest.mark.skipif(not INTERPRETED.value, reason="orders the programs of Triton's interpreter")

# A device on which no program has a whole channel.
SPLIT = Device(1, tuning=Tuning({batch_norm_plan.batch_norm_plans(False, n): {"resident_lanes": 0} for n in (2, 4)}))
# Shape, layout, dtype and multiprocessors: a split a group, as many as there are tiles, uneven shares of tiles.
CASES = {
    "one split": ((3, 37, 7, 7), False, torch.float32, 1),
    "a tile a split": ((6, 40, 8, 8), True, torch.bfloat16, 3),
    "uneven shares": ((5, 20, 30, 30), False, torch.float16, 2),
    "uneven shares, channels-last": ((33, 136, 5, 5), True, torch.float32, 3),
    "float64": ((7, 7, 9, 9), True, torch.float64, 1),
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


def drawn(case, where="cpu"):
    shape, channels_last, dtype, multiprocessors = CASES[case]
    return (*draw(shape, channels_last, dtype, where), replace(SPLIT, multiprocessors=multiprocessors))


@pytest.fixture
def poisoned():
    """A partial result that is read before it is written is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_the_cases_cover_what_a_plan_can_be():
    found = [
        batch_norm_plan.batch_norm(shape, last, dtype.itemsize, replace(SPLIT, multiprocessors=multiprocessors))
        for shape, last, dtype, multiprocessors in CASES.values()
    ]
    assert any(p.splits == 1 for p in found)
    assert any(p.splits == p.tiles > 1 for p in found)
    for last in (False, True):
        assert any(p.tiles % p.splits and p.groups > 1 for p in found if p.channels_last is last)


@interpreted
@pytest.mark.parametrize("case", CASES)
def test_results_match_float64_in_any_order(case, poisoned):
    *tensors, device = drawn(case)
    runs = []
    for seed in range(2):
        with interleaved(seed) as turns:
            runs.append(both_ways(*tensors, device))
        assert len(turns) == 4, "two launches forward and two backward"
    truth = truth_of(*tensors)
    for name, out in runs[0].items():
        assert torch.equal(out, runs[1][name]), f"{name} depends on the order"
        assert_right(out.sum(0) if name == "mean" else out, truth[name], name)


@pytest.fixture
def shared(monkeypatch):
    """Counters that all launches pass on to each other, as those of one stream do on a GPU."""
    tensor = torch.zeros(64, dtype=torch.int32)
    for module in (kernels, sweeps):
        monkeypatch.setattr(module, "counters", lambda n, device: tensor[:n])
    return tensor


@interpreted
@pytest.mark.parametrize("case", CASES)
def test_counters_are_left_as_they_were_found(case, shared):
    *tensors, device = drawn(case)
    for seed in range(2):
        with interleaved(seed):
            both_ways(*tensors, device)
        assert not shared.any()


@triton.jit
def _last_but_one(counter, programs):
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == programs - 2


@triton.jit
def _without_release(counter, programs):
    return tl.atomic_add(counter, 1, sem="relaxed", scope="gpu") == programs - 1


@interpreted
def test_a_merge_that_comes_early_is_noticed(monkeypatch, poisoned):
    *tensors, device = drawn("a tile a split")
    monkeypatch.setattr(streaming, "is_last", _last_but_one)

    def notice(seed):
        with interleaved(seed):
            return any(out.isnan().any() for out in both_ways(*tensors, device).values())

    assert any(map(notice, range(4)))


@interpreted
def test_a_merge_of_what_was_not_released_is_noticed(monkeypatch):
    *tensors, device = drawn("a tile a split")
    with watching() as watch:
        both_ways(*tensors, device)
    assert not watch.findings
    monkeypatch.setattr(streaming, "is_last", _without_release)
    with watching() as watch:
        both_ways(*tensors, device)
    assert watch.kernels(CONTENDED, "load") == {"_batch_norm_stats_kernel", "_batch_norm_reduce_kernel"}


every_launch_on_a_gpu = pytest.mark.parametrize(
    "shape", [(32, 256, 14, 14), (32, 64, 56, 56), (7, 512, 28, 28), (32, 2048, 7, 7)], ids=str
)
both_layouts = pytest.mark.parametrize("channels_last", [False, True])
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.mark.gpu
@pytest.mark.chance
@both_dtypes
@both_layouts
@every_launch_on_a_gpu
def test_a_gpu_matches_float64_and_itself(shape, channels_last, dtype, device):
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
def trained(device):
    """(a batch norm, x and dy of it)."""
    x, dy = (torch.randn(32, 256, 14, 14, device=device, dtype=torch.bfloat16) for _ in range(2))
    return BatchNorm2d(256, track_running_stats=False).to(device), x, dy


@pytest.mark.gpu
def test_reduce_overhead_has_the_same_bits_and_leaves_zeros(trained):
    norm, x, dy = trained
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
def test_a_stream_of_the_driver_is_known_as_such(trained):
    norm, x, dy = trained
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
