"""Each run goes through every phase beside the others, and is out after its first failure; on a virtual GPU."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from virtual_gpu import VirtualGpu

from bench.measure.timing import phases as gpu_phases
from bench.measure.timing.clock import Gpu
from bench.measure.timing.phases import (
    GpuFigures,
    NotCaptured,
    Phases,
    ProfiledLaunch,
    Unclear,
    launched,
    of_one_call,
)

US = 1e-6
CUDA = torch.device("cuda")
# Samplings and their budgets go by the host's clock.
pytestmark = pytest.mark.chance


class Replay:
    """A captured graph, which runs on the device alone."""

    def __init__(self, replay):
        self.replay = replay


@pytest.fixture
def gpu(monkeypatch):
    gpu = VirtualGpu()
    monkeypatch.setattr(gpu_phases, "capture", lambda run: Replay(gpu.call(4 * US, host_s=1 * US)))
    monkeypatch.setattr(
        gpu_phases, "launched", lambda gpu, run, calls: [ProfiledLaunch("flush", 9.0), ProfiledLaunch("k", 3.0)] * calls
    )
    for rule in ("COLD", "BESIDE"):  # whose budgets are real time too
        monkeypatch.setattr(gpu_phases, rule, replace(getattr(gpu_phases, rule), budget_s=float("inf")))
    monkeypatch.setattr("bench.measure.sampling.REST_S", 0.0)
    return gpu


def measured(gpu, runs, graphless=(), began=lambda name: None):
    return Phases(gpu, None, 0, began).measure(runs, graphless)


def failing(gpu, nth, error, lose=False):
    """A run whose nth call raises."""
    run = gpu.call(5 * US)

    def breaks():
        if run.calls + 1 == nth:
            gpu.lost = lose
            raise error
        run()

    return breaks


def test_every_phase_finds_its_figure(gpu):
    found = measured(gpu, {"a": gpu.call(5 * US, host_s=70 * US, reading_s=3 * US)})["a"]
    assert isinstance(found, GpuFigures)
    assert found.cold.samples == pytest.approx([8] * len(found.cold.samples))
    assert found.hot.samples == pytest.approx([5] * len(found.hot.samples))
    assert found.graph.replays.samples == pytest.approx([4] * len(found.graph.replays.samples))
    assert (found.kernels.kernel_us, found.kernels.launches) == (3.0, 1)
    assert found.call_us == pytest.approx(70, rel=1e-3)  # the host takes longer than the device
    assert {found.cold.stopped, found.hot.stopped, found.graph.replays.stopped} == {"noise"}
    assert not found.graph.poisoned


def test_a_run_that_fails_in_any_phase_is_out_and_the_others_go_on(gpu):
    warm, whole = gpu.call(5 * US), gpu.call(5 * US)
    Phases(gpu, None).timer(warm)
    measured(gpu, {"whole": whole})
    for nth in (1, warm.calls + 1, (warm.calls + whole.calls) // 2, whole.calls):
        error = ValueError("boom")
        found = measured(gpu, {"bad": failing(gpu, nth, error), "good": gpu.call(5 * US)})
        assert found["bad"] is error
        assert isinstance(found["good"], GpuFigures)


def test_a_run_that_loses_the_device_is_the_last_of_those_that_failed_and_nothing_else_is_told(gpu):
    early, lost = ValueError("early"), RuntimeError("illegal access")
    runs = {"lost": failing(gpu, 8200, lost, lose=True), "good": gpu.call(5 * US), "early": failing(gpu, 9, early)}
    assert list(measured(gpu, runs).items()) == [("early", early), ("lost", lost)]


def test_an_error_that_shows_only_when_the_device_is_waited_for_belongs_to_who_ran(gpu):
    run = gpu.call(5 * US)

    def breaks():
        run()
        gpu.lost = True  # and says nothing until the next synchronization

    found = measured(gpu, {"good": gpu.call(5 * US), "bad": breaks})
    assert [(name, str(error)) for name, error in found.items()] == [
        ("bad", "an illegal memory access was encountered")
    ]


def test_without_a_graph_everything_else_is_there_and_the_process_is_marked(gpu, monkeypatch):
    def refuse(run):
        raise NotCaptured("operation not permitted\nwhen stream is capturing", poisoned=True)

    monkeypatch.setattr(gpu_phases, "capture", refuse)
    found = measured(gpu, {"a": gpu.call(5 * US)})["a"]
    assert (found.graph.replays, found.graph.poisoned) == (None, True)
    assert found.graph.remark == "operation not permitted"
    assert found.kernels.launches == 1


def test_a_graph_that_is_not_wanted_is_not_tried(gpu, monkeypatch):
    tried = []
    monkeypatch.setattr(gpu_phases, "capture", lambda run: tried.append(run) or Replay(gpu.call(4 * US)))
    found = measured(gpu, {"a": gpu.call(5 * US), "b": gpu.call(6 * US)}, graphless=("a",))
    assert len(tried) == 1
    assert (found["a"].graph.replays, found["a"].graph.remark) == (
        None,
        "an earlier capture of it has spoiled its process",
    )
    assert found["b"].graph.replays


def test_graphs_come_after_all_other_phases_of_all_runs(gpu, monkeypatch):
    calls_before = []
    runs = {name: gpu.call(5 * US) for name in "ab"}
    counts = lambda: tuple(run.calls for run in runs.values())
    monkeypatch.setattr(gpu_phases, "capture", lambda run: calls_before.append(counts()) or Replay(gpu.call(4 * US)))
    measured(gpu, runs)
    assert calls_before == [counts()] * 2


def test_a_profiler_that_fails_costs_its_own_figures_alone(gpu, monkeypatch):
    def breaks(gpu, run, calls):
        raise RuntimeError("CUPTI is in use")

    monkeypatch.setattr(gpu_phases, "launched", breaks)
    found = measured(gpu, {"a": gpu.call(5 * US)})["a"]
    assert (found.kernels.kernel_us, found.kernels.remark) == (None, "CUPTI is in use")
    assert found.graph.replays


def test_each_run_is_named_before_it_runs(gpu):
    now, wrong = [""], []

    def named(name):
        run = gpu.call(5 * US)
        return lambda: (now[0] == name or wrong.append((now[0], name)), run())

    measured(gpu, {name: named(name) for name in "abc"}, began=lambda name: now.__setitem__(0, name))
    assert wrong == []


FLUSH = ProfiledLaunch("Memset", 40.0)


def profile(*calls):
    """The launches of calls given as {kernel: microseconds}, a flush before each."""
    return [launch for call in calls for launch in (FLUSH, *(ProfiledLaunch(*item) for item in call.items()))]


def test_kernels_are_added_up_and_the_flush_is_left_out():
    assert of_one_call(profile({"stats": 3.0, "normalize": 5.0}, {"stats": 3.0, "normalize": 5.0}), 2) == (8.0, 2)


def test_the_time_is_the_median_over_the_calls():
    assert of_one_call(profile({"k": 3.0}, {"k": 90.0}, {"k": 4.0}), 3) == (4.0, 1)


def test_a_call_that_launches_nothing_is_no_mistake():
    assert of_one_call(profile({}, {}, {}), 3) == (0.0, 0)


def test_a_call_may_itself_begin_with_what_the_flush_is_made_of():
    call = [FLUSH, ProfiledLaunch("Memset", 1.0), ProfiledLaunch("k", 5.0)]
    assert of_one_call(call * 3, 3) == (6.0, 2)


@pytest.mark.parametrize(
    "seen, why",
    [
        ([], "the profiler saw nothing"),
        (profile({"k": 1.0}, {"k": 1.0})[:-1], "3 launches in 2 calls"),
        (profile({"k": 1.0, "l": 1.0}, {"l": 1.0, "k": 1.0}), "not every call launches the same"),
        (profile({"k": 1.0, "l": 1.0}, {}), "not every call launches the same"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(seen, why):
    with pytest.raises(Unclear, match=why):
        of_one_call(seen, 2)


@pytest.mark.gpu
def test_a_real_profile_counts_two_kernels_again_and_again():
    gpu, x = Gpu(CUDA), torch.randn(1 << 22, device=CUDA)
    x.mul(2).add(1)
    for _ in range(3):
        kernel_us, count = of_one_call(launched(gpu, lambda: x.mul(2).add(1), 5), 5)
        assert count == 2
        assert 1 < kernel_us < 1000


@pytest.mark.gpu
def test_a_real_call_has_every_figure():
    x = torch.randn(1 << 22, device=CUDA)
    runs = {"two": lambda: x.mul(2).add(1), "one": lambda: x.mul(2)}
    for _ in range(2):  # a second time after profiler and graphs, as in the next case of a run
        found = gpu_phases.measure(runs, CUDA, (), 0, lambda name: None, {}, energies=False)
        assert [found["two"].kernels.launches, found["one"].kernels.launches] == [2, 1]
        assert found["two"].graph.remark == found["one"].graph.remark == ""
        assert not found["two"].host_bound
        for one in found.values():
            cold, graph = sorted(one.cold.samples), sorted(one.graph.replays.samples)
            assert 0.3 < graph[len(graph) // 2] / cold[len(cold) // 2] < 3
            assert one.kernels.kernel_us < 1.5 * cold[len(cold) // 2]
            assert one.call_us > 0.5 * one.kernels.kernel_us


@pytest.mark.gpu
def test_a_real_profiler_leaves_nothing_in_later_calls():
    code = """
import torch; from bench.measure.timing.clock import Gpu; from bench.measure.timing.phases import Phases, launched
d = torch.device("cuda"); gpu, x = Gpu(d), torch.randn(1 << 10, device=d)
phases = Phases(gpu, None); timer = phases.timer(lambda: x.mul(2))
least = lambda: min(phases._call_us(timer) for _ in range(10))
before = least()
assert launched(gpu, timer.run, 10)
print(before, least())"""
    # By itself, so that no test has profiled before. What else the host does only adds to a call's time, and seldom to
    # all of ten; what a profiler leaves is in each.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    before, after = map(float, done.stdout.split()[-2:])
    assert after < 1.1 * before


@pytest.mark.gpu
def test_a_real_device_that_was_lost_is_blamed_on_who_lost_it():
    code = """
import torch; from bench.measure import timing
d = torch.device("cuda"); x = torch.randn(1 << 20, device=d); beyond = torch.tensor([1 << 20], device=d)
found = timing.measure_together({"good": lambda: x.mul(2), "bad": lambda: x[beyond]}, d)
print(*found, *(isinstance(error, RuntimeError) for error in found.values()))"""
    # By itself, for it leaves the process beyond use.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-1] == "bad True"
