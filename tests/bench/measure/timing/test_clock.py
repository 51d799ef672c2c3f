"""The host, the cache and the flush are no part of a call's time; on a GPU in virtual time, and on a real one."""

from __future__ import annotations

import gc
import time
from dataclasses import astuple

import pytest
import torch
from virtual_gpu import CYCLES_PER_S, EVENT_S, FLUSH_S, LAUNCH_S, VirtualGpu

from bench.measure.telemetry import cache_bytes
from bench.measure.timing.clock import (
    BLOCK_CALLS,
    BLOCK_S,
    LONGEST_SLEEP_S,
    WARM_UP_S,
    BlockTimer,
    Gpu,
    Overhead,
    measure_overhead,
)

US = 1e-6
OWN = Overhead(LAUNCH_S + 2 * EVENT_S, FLUSH_S, CYCLES_PER_S)


@pytest.fixture
def gpu():
    return VirtualGpu()


# The second host launches more slowly than the device works.
@pytest.mark.parametrize("us, host_s", [(30, LAUNCH_S), (5, 200 * US)])
def test_a_call_is_timed_from_its_start_to_its_end_without_the_flush_and_the_host(gpu, us, host_s):
    timer = BlockTimer(gpu, gpu.call(us * US, host_s), OWN)
    assert timer.cold() == pytest.approx([us] * timer.calls)
    assert timer.hot() == pytest.approx([us] * timer.calls)
    assert not timer.host_bound


def test_cold_calls_find_nothing_in_the_cache_and_hot_ones_what_the_last_left(gpu):
    timer = BlockTimer(gpu, gpu.call(10 * US, reading_s=7 * US), OWN)
    assert timer.cold() == pytest.approx([17] * timer.calls)
    gpu.flush()  # as another provider's block does
    assert timer.hot() == pytest.approx([10] * timer.calls)


def test_a_call_that_waits_for_the_device_is_said_to_have_the_host_in_its_time(gpu):
    timer = BlockTimer(gpu, gpu.call(5 * US, host_s=50 * US, waits=True), OWN)
    assert min(timer.cold()) > 15
    assert timer.host_bound
    began = gpu.host
    timer.cold()
    assert gpu.host - began < LONGEST_SLEEP_S  # no block after that sleeps in vain


def test_a_block_in_which_the_host_fell_behind_is_taken_again(gpu):
    run = gpu.call(5 * US)
    delays = iter([0.0] * 5 + [0.02])

    def hindered():
        gpu.host += next(delays, 0.0)
        run()

    timer = BlockTimer(gpu, run, OWN)
    timer.run = hindered
    assert timer.cold() == pytest.approx([5] * timer.calls)
    assert not timer.host_bound


@pytest.mark.parametrize("device_s, calls", [(1.0, 3), (0.01, 3), (0.001, 31)])
def test_warm_up_goes_by_the_calls_own_time_and_makes_at_least_three(gpu, device_s, calls):
    run = gpu.call(device_s)
    BlockTimer(gpu, run, OWN)
    assert run.calls == calls
    assert gpu.host >= WARM_UP_S


def test_warm_up_never_makes_much_more_than_it_needs(gpu):
    BlockTimer(gpu, gpu.call(5 * US), OWN)
    assert gpu.host < 3 * WARM_UP_S


@pytest.mark.parametrize("device_s, calls", [(1.0, 1), (0.9e-3, 10), (5 * US, BLOCK_CALLS)])
def test_a_block_is_short_and_has_a_call_at_least(gpu, device_s, calls):
    timer = BlockTimer(gpu, gpu.call(device_s), OWN)
    assert timer.calls == calls
    assert len(timer.cold()) == calls


def test_a_block_of_quick_calls_is_done_in_its_time(gpu):
    timer = BlockTimer(gpu, gpu.call(5 * US, host_s=100 * US), OWN)
    began = gpu.host
    timer.cold()
    assert gpu.host - began < 2 * BLOCK_S


def test_the_first_call_of_a_block_is_not_counted(gpu):
    run = gpu.call(5 * US)
    timer = BlockTimer(gpu, run, OWN)
    before = run.calls
    assert len(timer.cold()) == run.calls - before - 1


def test_the_collector_is_on_again_after_a_block_that_failed(gpu):
    timer = BlockTimer(gpu, gpu.call(5 * US), OWN)

    def breaks():
        assert not gc.isenabled()
        raise ZeroDivisionError

    timer.run = breaks
    with pytest.raises(ZeroDivisionError):
        timer.cold()
    assert gc.isenabled()


def test_the_instruments_own_work_is_measured(gpu):
    assert astuple(measure_overhead(gpu)) == pytest.approx((OWN.launch_s, OWN.flush_s, OWN.cycles_per_s))


CUDA = torch.device("cuda")


@pytest.fixture
def real():
    return Gpu(CUDA)


@pytest.mark.gpu
@pytest.mark.chance
def test_a_real_gpus_sleep_and_flush_are_measured(real):
    found = measure_overhead(real)
    assert 1e8 < found.cycles_per_s < 5e9
    assert 1e-6 < found.flush_s < 1e-2
    began = real.now()
    real.sleep(int(0.05 * found.cycles_per_s))
    real.synchronize()
    assert 0.03 < real.now() - began < 0.2


@pytest.mark.gpu
@pytest.mark.chance
def test_a_real_gpus_time_leaves_out_a_slow_host(real):
    x = torch.randn(1 << 16, device=CUDA)

    def slow():
        end = time.perf_counter() + 300e-6
        while time.perf_counter() < end:
            pass
        x.mul(2)

    timer = BlockTimer(real, slow, measure_overhead(real))
    assert sorted(timer.cold())[timer.calls // 2] < 100
    assert not timer.host_bound


@pytest.mark.gpu
@pytest.mark.chance
def test_a_real_call_that_waits_is_host_bound(real):
    x = torch.randn(1 << 16, device=CUDA)
    timer = BlockTimer(real, lambda: x.sum().item(), measure_overhead(real))
    timer.cold()
    assert timer.host_bound


@pytest.mark.gpu
@pytest.mark.chance
def test_a_real_cache_is_cold_in_cold_calls_only(real):
    x = torch.randn(cache_bytes(CUDA) // 4 // 4, device=CUDA)  # a quarter of the cache
    timer = BlockTimer(real, lambda: x.sum(), measure_overhead(real))
    cold, hot = sorted(timer.cold()), sorted(timer.hot())
    assert cold[timer.calls // 2] > 1.1 * hot[timer.calls // 2]
