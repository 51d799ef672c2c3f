"""What a time is worth is said by its clock; a CPU's time is never one of a GPU."""

from __future__ import annotations

from time import sleep

import pytest
import torch

from bench import timing

CPU = torch.device("cpu")


def test_a_cpus_time_is_marked_as_the_hosts_or_the_interpreters():
    assert timing.measure(lambda: None, CPU).clock == "host_cpu"
    assert timing.measure(lambda: None, CPU, interpreted=True).clock == "interpreter"


def test_the_figures_are_microseconds_of_one_call():
    measured = timing.measure(lambda: sleep(0.002), CPU)
    assert 2000 <= measured.min <= measured.latency_us < 20_000


def test_the_figures_are_in_order():
    pauses = iter([0.0, 0.001, 0.002, 0.003, 0.004] * 10)
    measured = timing.measure(lambda: sleep(next(pauses)), CPU)
    assert measured.min < measured.p10 < measured.latency_us < measured.p90


def test_a_call_slower_than_the_budget_is_still_measured_once(monkeypatch):
    monkeypatch.setattr(timing, "CPU_BUDGET_S", 0.001)
    calls = []
    measured = timing.measure(lambda: (calls.append(1), sleep(0.005)), CPU)
    assert measured.samples == len(calls) == 1


def test_a_quick_call_is_measured_only_so_often():
    calls = []
    assert timing.measure(lambda: calls.append(1), CPU).samples == len(calls) == timing.CPU_SAMPLES


def test_what_the_call_raises_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        timing.measure(lambda: 1 / 0, CPU)


def test_a_cpu_has_no_roof_to_hold_a_cell_against():
    assert timing.copy_bandwidth(CPU) is None


@pytest.mark.gpu
def test_a_gpus_clock_is_the_events_and_its_copy_is_within_what_hardware_does():
    device = torch.device("cuda")
    x = torch.randn(1 << 24, device=device)
    measured = timing.measure(lambda: x.mul(2), device)
    assert measured.clock == "cuda_event"
    assert measured.samples >= 5
    assert 50 < timing.copy_bandwidth(device) < 20_000


@pytest.mark.gpu
def test_a_gpus_l2_is_smaller_than_what_is_cleared_between_calls():
    assert torch.cuda.get_device_properties(0).L2_cache_size < 256 << 20
