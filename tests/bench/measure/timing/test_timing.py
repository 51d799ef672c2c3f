"""A time names its clock; a CPU's time is never one of a GPU."""

from __future__ import annotations

from dataclasses import fields, replace
from statistics import median
from time import sleep

import pytest
import torch

from bench.measure import timing
from bench.measure.sampling import Series
from bench.measure.telemetry import Reading, cache_bytes
from bench.measure.timing import CPU, Timing, measure_together, phases
from bench.measure.timing.energy import CallEnergy
from bench.measure.timing.phases import GpuFigures, GraphReplays, KernelTime
from bench.results.records import Record
from bench.results.speedup import BEYOND_COPY, floor_us

HOST = torch.device("cpu")
CUDA = torch.device("cuda")
MEBIBYTE = 1 << 20


def measure(run):
    return measure_together({"a": run}, HOST)["a"]


@pytest.fixture
def enough_time(monkeypatch):
    """However long a busy machine holds this process up, no budget is spent: what ends the sampling is the number."""
    monkeypatch.setattr(timing, "CPU", replace(CPU, budget_s=float("inf")))


@pytest.fixture
def passes(monkeypatch):
    """Gives a call that takes so many seconds by the clock of host calls, which stands still otherwise."""
    now = [0.0]
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_every_figure_has_the_name_that_the_record_gives_it():
    told = {f.name for f in fields(Timing)} - {"series", "remarks", "doubt", "poisoned"}
    assert told <= {f.name for f in fields(Record)}


@pytest.mark.chance
def test_a_cpus_time_is_marked_as_the_hosts_or_the_interpreters():
    found = measure_together({"a": lambda: None, "b": lambda: None}, HOST, interpreted=["b"])
    assert {name: one.clock for name, one in found.items()} == {"a": "host_cpu", "b": "interpreter"}


def test_the_figures_are_microseconds_of_one_call(passes, enough_time):
    measured = measure(lambda: passes(0.002))
    figures = (measured.latency_us_min, measured.latency_us, measured.latency_us_p90)
    assert figures == pytest.approx((2000, 2000, 2000))


@pytest.mark.chance
def test_a_calls_time_is_that_of_the_clock():
    assert measure(lambda: sleep(0.002)).latency_us_min >= 2000


def test_the_figures_are_in_order(passes, enough_time):
    pauses = iter([0.003, 0.001, 0.004, 0.005, 0.009, 0.002, 0.006, 0.008, 0.007, 0.010])
    found = measure(lambda: passes(next(pauses)))
    assert found.latency_us_min < found.latency_us_p10 < found.latency_us < found.latency_us_p90
    assert found.latency_us_min <= found.latency_us_low < found.latency_us < found.latency_us_high
    assert found.noise > 0.1


@pytest.mark.chance
def test_every_sample_is_there_and_the_figures_are_theirs():
    found = measure(lambda: None)
    assert set(found.series) == {"cold_us"}
    assert len(found.series["cold_us"]) == found.samples
    assert min(found.series["cold_us"]) == found.latency_us_min


@pytest.mark.chance
def test_a_call_slower_than_the_budget_is_still_measured_once():
    calls = []
    found = measure(lambda: (calls.append(1), sleep(1.2 * CPU.budget_s)))
    assert found.samples == len(calls) == 1
    assert (found.noise, found.stopped) == (None, "budget")
    assert found.latency_us_low == found.latency_us == found.latency_us_high


@pytest.mark.chance
def test_a_quick_call_is_measured_only_so_often(enough_time):
    calls = []
    assert measure(lambda: calls.append(1)).samples == len(calls) == CPU.most_samples


def test_no_cells_take_no_time():
    assert measure_together({}, HOST) == {}


def test_a_cpu_has_no_roof_to_hold_a_cell_against():
    assert timing.copy_bandwidth(HOST) is None


def series(samples, readings=(), retaken=0, reasons=()):
    return Series(list(samples), 1, 0.1, "noise", list(readings), set(reasons), retaken)


@pytest.fixture
def on_gpu(monkeypatch):
    def put(**changes):
        found = {
            "cold": series([11.0, 10.0, 12.0], [Reading(1900, 2600, 300.0, 40), Reading(1800, 2600, None, 50)]),
            "hot": series([8.0, 9.0, 7.0]),
            "call_us": 20.0,
            "energy": CallEnergy(4.0, 3.9, 4.2),
            "kernels": KernelTime(9.5, 2),
            "graph": GraphReplays(series([10.5, 9.5, 9.0])),
            "host_bound": False,
        } | changes
        monkeypatch.setattr(phases, "measure", lambda runs, *rest: {name: GpuFigures(**found) for name in runs})
        return measure_together({"a": lambda: None}, CUDA)["a"]

    return put


def test_a_gpus_figures_are_medians_and_the_devices_state_their_mean(on_gpu):
    found = on_gpu()
    assert (found.latency_us, found.hot_us, found.graph_us, found.call_us) == (11.0, 8.0, 9.5, 20.0)
    assert (found.kernel_us, found.launches) == (9.5, 2)
    assert (found.energy_mj, found.energy_mj_low, found.energy_mj_high) == (4.0, 3.9, 4.2)
    assert (found.sm_clock_mhz, found.mem_clock_mhz, found.power_w, found.temperature_c) == (1850, 2600, 300.0, 45)
    assert (found.clock, found.retaken, found.throttle, found.remarks) == ("cuda_event", 0, "", ())
    assert set(found.series) == {"cold_us", "hot_us", "graph_us"}


def test_what_was_taken_again_is_counted_and_what_held_the_clocks_down_is_told(on_gpu):
    held = {"readings": [Reading()], "retaken": 20, "reasons": {"sw_power_cap"}}
    found = on_gpu(cold=series([1.0], **held), hot=series([1.0], [Reading()], 10, {"hw_slowdown", "sw_power_cap"}))
    assert (found.retaken, found.throttle) == (30, "hw_slowdown, sw_power_cap")


def test_where_nobody_could_tell_that_the_gpu_was_throttled_nothing_is_claimed(on_gpu):
    assert on_gpu(cold=series([1.0])).retaken is None


def test_a_figure_that_could_not_be_had_says_why(on_gpu):
    found = on_gpu(
        kernels=KernelTime(remark="CUPTI is in use"),
        graph=GraphReplays(remark="it waits", poisoned=True),
        host_bound=True,
    )
    assert found.kernel_us is found.launches is found.graph_us is None
    assert found.remarks == (
        "the host is in latency_us: a call waits for the device",
        "no kernel_us: CUPTI is in use",
        "no graph_us: it waits",
    )
    assert found.poisoned
    assert "graph_us" not in found.series


def test_no_time_is_impossible_where_everything_fits_into_the_cache():
    assert floor_us(50 * MEBIBYTE, 50 * MEBIBYTE, 3000.0) == 0
    assert floor_us(1000 * MEBIBYTE, 0, 3000.0) == 0  # a cache of unknown size


def test_the_least_time_is_that_of_the_bytes_that_cannot_stay_in_the_cache():
    # 1 GB/s is 1e3 bytes in a microsecond; a copy's bandwidth may be surpassed by a quarter.
    assert floor_us(60_000_000, 10_000_000, 1000.0) == pytest.approx(50_000_000 / 1000e3 / BEYOND_COPY)


def test_a_large_copy_is_never_impossible_and_a_quarter_left_out_is():
    size, cache, gbps = 4096 * MEBIBYTE, 50 * MEBIBYTE, 3000.0
    copied_us = size / gbps / 1e3
    assert 0.7 * copied_us < floor_us(size, cache, gbps) < copied_us


@pytest.mark.gpu
@pytest.mark.chance
def test_a_gpus_clock_is_the_events_and_its_copy_is_within_what_hardware_does():
    x = torch.randn(1 << 24, device=CUDA)
    found = measure_together({"a": lambda: x.mul(2)}, CUDA)["a"]
    assert found.clock == "cuda_event"
    assert found.samples >= 20
    assert found.latency_us_low <= found.latency_us <= found.latency_us_high
    assert 50 < timing.copy_bandwidth(CUDA) < 20_000


@pytest.mark.gpu
@pytest.mark.chance
def test_no_honest_time_on_a_real_gpu_is_impossible():
    gbps, cache = timing.copy_bandwidth(CUDA), cache_bytes(CUDA)
    x = torch.randn(1 << 26, device=CUDA)
    runs = {"read": lambda: x.sum(), "both": lambda: x.mul(2)}
    found = measure_together(runs, CUDA)
    assert found["read"].latency_us > floor_us(x.nbytes, cache, gbps) > 0
    assert found["both"].latency_us > floor_us(2 * x.nbytes, cache, gbps)


@pytest.mark.gpu
@pytest.mark.chance
def test_two_names_for_one_call_take_the_same_time():
    x = torch.randn(1 << 24, device=CUDA)
    ratios = []
    for seed in range(5):
        found = measure_together({name: lambda: x.mul(2) for name in "ab"}, CUDA, seed=seed)
        ratios.append(found["a"].latency_us / found["b"].latency_us)
    # Clocks that change during one measurement move its ratio, either way; one name that is favoured moves all.
    assert median(ratios) == pytest.approx(1, rel=0.02)
