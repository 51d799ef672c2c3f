"""The host, the cache and the flush are no part of a call's time; on a GPU in virtual time, and on a real one."""

from __future__ import annotations

import gc
import time
from dataclasses import astuple

import pytest
import torch
from virtual_gpu import CYCLES_PER_S, EVENT_S, FLUSH_S, LAUNCH_S, VirtualGpu

from bench.measure.timing import clock as gpu_clock
from bench.measure.timing.clock import BLOCK_CALLS, BLOCK_S, LONGEST_SLEEP_S, WARM_UP_S, Lane, Pace, pace

US = 1e-6
PACE = Pace(LAUNCH_S + 2 * EVENT_S, FLUSH_S, CYCLES_PER_S)


@pytest.fixture
def gpu():
    return VirtualGpu()


def test_a_call_is_timed_from_its_start_to_its_end_and_without_the_flush(gpu):
    lane = Lane(gpu, gpu.call(30 * US), PACE)
    assert lane.cold() == pytest.approx([30] * BLOCK_CALLS)
    assert lane.hot() == pytest.approx([30] * BLOCK_CALLS)


def test_a_host_that_launches_more_slowly_than_the_device_works_is_not_timed(gpu):
    lane = Lane(gpu, gpu.call(5 * US, host_s=200 * US), PACE)
    assert lane.cold() == pytest.approx([5] * lane.calls)
    assert lane.hot() == pytest.approx([5] * lane.calls)
    assert not lane.host_bound


def test_cold_calls_find_nothing_in_the_cache_and_hot_ones_what_the_last_left(gpu):
    lane = Lane(gpu, gpu.call(10 * US, reading_s=7 * US), PACE)
    assert lane.cold() == pytest.approx([17] * lane.calls)
    gpu.flush()  # as another provider's block does
    assert lane.hot() == pytest.approx([10] * lane.calls)


def test_a_call_that_waits_for_the_device_is_said_to_have_the_host_in_its_time(gpu):
    lane = Lane(gpu, gpu.call(5 * US, host_s=50 * US, waits=True), PACE)
    assert min(lane.cold()) > 15
    assert lane.host_bound
    began = gpu.host
    lane.cold()
    assert gpu.host - began < LONGEST_SLEEP_S  # no block after that sleeps in vain


def test_a_block_in_which_the_host_fell_behind_is_taken_again(gpu):
    run = gpu.call(5 * US)
    delays = iter([0.0] * 5 + [0.02])

    def hindered():
        gpu.host += next(delays, 0.0)
        run()

    lane = Lane(gpu, run, PACE)
    lane.run = hindered
    assert lane.cold() == pytest.approx([5] * lane.calls)
    assert not lane.host_bound


@pytest.mark.parametrize("device_s, calls", [(1.0, 3), (0.01, 3), (0.001, 31)])
def test_warm_up_goes_by_the_calls_own_time_and_makes_at_least_three(gpu, device_s, calls):
    run = gpu.call(device_s)
    Lane(gpu, run, PACE)
    assert run.calls == calls
    assert gpu.host >= WARM_UP_S


def test_warm_up_never_makes_much_more_than_it_needs(gpu):
    Lane(gpu, gpu.call(5 * US), PACE)
    assert gpu.host < 3 * WARM_UP_S


@pytest.mark.parametrize("device_s, calls", [(1.0, 1), (0.9e-3, 10), (5 * US, BLOCK_CALLS)])
def test_a_block_is_short_and_has_a_call_at_least(gpu, device_s, calls):
    lane = Lane(gpu, gpu.call(device_s), PACE)
    assert lane.calls == calls
    assert len(lane.cold()) == calls


def test_a_block_of_quick_calls_is_done_in_its_time(gpu):
    lane = Lane(gpu, gpu.call(5 * US, host_s=100 * US), PACE)
    began = gpu.host
    lane.cold()
    assert gpu.host - began < 2 * BLOCK_S


def test_the_first_call_of_a_block_is_not_counted(gpu):
    run = gpu.call(5 * US)
    lane = Lane(gpu, run, PACE)
    before = run.calls
    assert len(lane.cold()) == run.calls - before - 1


def test_what_a_call_raises_is_not_swallowed(gpu):
    with pytest.raises(ZeroDivisionError):
        Lane(gpu, lambda: 1 / 0, PACE)


def test_the_collector_is_on_again_after_a_block_that_failed(gpu):
    lane = Lane(gpu, gpu.call(5 * US), PACE)

    def breaks():
        assert not gc.isenabled()
        raise ZeroDivisionError

    lane.run = breaks
    with pytest.raises(ZeroDivisionError):
        lane.cold()
    assert gc.isenabled()


def test_the_pace_is_that_of_the_device(gpu):
    assert astuple(pace(gpu)) == pytest.approx((PACE.launch_s, PACE.flush_s, PACE.cycles_per_s))


@pytest.mark.parametrize(
    "told, hip, size",
    [
        (50 << 20, None, 50 << 20),
        (0, None, gpu_clock.UNKNOWN_CACHE),
        (4 << 20, "7.0", gpu_clock.INFINITY_CACHE),
    ],
)
def test_the_cache_is_what_the_device_tells_except_where_it_tells_too_little(monkeypatch, told, hip, size):
    properties = type("Properties", (), {"L2_cache_size": told})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert gpu_clock.cache_bytes(torch.device("cuda")) == size


CUDA = torch.device("cuda")


@pytest.fixture
def real():
    return gpu_clock.Gpu(CUDA)


@pytest.mark.gpu
@pytest.mark.chance
def test_a_real_gpus_sleep_and_flush_are_measured(real):
    found = pace(real)
    assert 1e8 < found.cycles_per_s < 5e9
    assert 1e-6 < found.flush_s < 1e-2


@pytest.mark.gpu
@pytest.mark.chance
def test_a_real_sleep_lasts_as_long_as_it_was_told(real):
    found = pace(real)
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

    lane = Lane(real, slow, pace(real))
    assert sorted(lane.cold())[lane.calls // 2] < 100
    assert not lane.host_bound


@pytest.mark.gpu
@pytest.mark.chance
def test_a_real_call_that_waits_is_host_bound(real):
    x = torch.randn(1 << 16, device=CUDA)
    lane = Lane(real, lambda: x.sum().item(), pace(real))
    lane.cold()
    assert lane.host_bound


@pytest.mark.gpu
@pytest.mark.chance
def test_a_real_cache_is_cold_in_cold_calls_only(real):
    x = torch.randn(gpu_clock.cache_bytes(CUDA) // 4 // 4, device=CUDA)  # a quarter of the cache
    lane = Lane(real, lambda: x.sum(), pace(real))
    cold, hot = sorted(lane.cold()), sorted(lane.hot())
    assert cold[lane.calls // 2] > 1.1 * hot[lane.calls // 2]
