"""A call's energy is the board's between steps of its counter, divided by the calls made; on a virtual GPU."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from virtual_gpu import VirtualGpu

from bench.measure import telemetry
from bench.measure.timing import energy
from bench.measure.timing.clock import Gpu
from bench.measure.timing.phases import Phases

US = 1e-6
CUDA = torch.device("cuda")


def counting(gpu, tick_s, watts=lambda moment: 500.0, began_mj=7_000_000):
    """A counter that shows, every `tick_s`, what the board has used by then; its power changes in steps of 1 ms."""
    spent = [began_mj]

    def counter():
        ticks = round(gpu.now() // tick_s * tick_s / 1e-3)
        while len(spent) <= ticks:
            spent.append(spent[-1] + watts(len(spent) * 1e-3))
        return int(spent[ticks])

    return counter


@pytest.mark.parametrize("tick_s", [0.01, 0.02, 0.1])
@pytest.mark.parametrize("call_us", [3, 70, 900, 12_000])
def test_the_energy_is_power_times_the_time_of_a_call(tick_s, call_us):
    gpu = VirtualGpu()
    call = gpu.call(call_us * US, host_s=1 * US)
    found = energy.of_call(gpu, call, call_us * US, counting(gpu, tick_s))
    assert not found.remark
    # A batch at either end, in a quarter of a second and more.
    assert found.mj == pytest.approx(500 * call_us * 1e-3, rel=max(2e-3, 12e-3 * (call_us > 2000)) / 0.25)
    assert found.low <= found.mj <= found.high


def test_a_host_that_is_slower_than_the_device_is_in_it_as_in_call_us():
    gpu = VirtualGpu()
    found = energy.of_call(gpu, gpu.call(5 * US, host_s=50 * US), 50 * US, counting(gpu, 0.02))
    assert found.mj == pytest.approx(500 * 0.05, rel=0.02)


def test_the_range_holds_a_board_whose_power_changes():
    gpu = VirtualGpu()
    rising = counting(gpu, 0.02, lambda moment: 300.0 + 200 * moment)
    found = energy.of_call(gpu, gpu.call(100 * US, host_s=1 * US), 100 * US, rising)
    assert found.low < 0.97 * found.mj and found.high > 1.03 * found.mj
    assert found.low >= 30 and found.high <= 0.1 * (300 + 200 * gpu.now())


def test_neither_the_first_part_of_a_step_nor_what_came_before_is_counted():
    gpu = VirtualGpu()
    gpu.host = 0.0999  # the counter moves at once, by what was used before
    counter = counting(gpu, 0.1, lambda moment: 900 if moment <= 0.1 else 400)
    found = energy.of_call(gpu, gpu.call(100 * US, host_s=1 * US), 100 * US, counter)
    assert found.mj == pytest.approx(40, rel=0.02)


def test_without_a_counter_or_with_one_that_stands_still_there_is_a_remark():
    gpu = VirtualGpu()
    none = energy.of_call(gpu, gpu.call(5 * US), 5 * US, lambda: None)
    assert (none.mj, none.remark) == (None, "NVML has no counter of this device's energy")
    stands = energy.of_call(gpu, gpu.call(5 * US), 5 * US, lambda: 42)
    assert (stands.mj, stands.remark) == (None, "NVML's counter of energy moved 0 times in 2 s")
    gpu = VirtualGpu()
    slow = energy.of_call(gpu, gpu.call(5 * US), 5 * US, counting(gpu, 0.6))
    assert (slow.mj, slow.remark) == (None, "NVML's counter of energy moved 3 times in 2 s")


def test_a_counter_that_does_not_answer_once_is_asked_again():
    gpu = VirtualGpu()
    counter, turns = counting(gpu, 0.02), count()
    found = energy.of_call(
        gpu, gpu.call(100 * US, host_s=1 * US), 100 * US, lambda: None if next(turns) % 3 == 1 else counter()
    )
    assert found.mj == pytest.approx(50, rel=0.05)


@pytest.mark.gpu
def test_a_real_board_uses_between_half_of_its_idle_power_and_its_limit():
    monitor = telemetry.monitor(CUDA)
    if monitor is None or monitor.energy_mj() is None:
        pytest.skip("NVML, or its binding, does not count energy here")
    gpu, x = Gpu(CUDA), torch.randn(1 << 26, device=CUDA)
    idle_w = monitor.read().power_w
    phases = Phases(gpu, monitor)
    timer = phases.timer(lambda: x.mul(2))
    watts = 1e3 * phases._energy(timer).mj / phases._call_us(timer)
    assert 0.5 * idle_w < watts < 1.2 * monitor.limits()["power_limit_w"]
