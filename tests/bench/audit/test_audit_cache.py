"""The model of a cache, where the answer is known without it."""

import pytest

from bench.audit.cache import Programs, device_units, expected_units
from normlib.kernels.batch_norm.plan import batch_norm
from normlib.kernels.plan import Device
from normlib.kernels.traffic import TileSweep

FORWARD, BACKWARDS = TileSweep(("x",)), TileSweep(("x",), ("y",), backwards=True)


def streaming(second=BACKWARDS, resident=1, splits=1):
    return tuple(Programs((sweep,), splits, resident) for sweep in (FORWARD, second))


def test_what_fits_is_read_once():
    assert device_units(1, 8, streaming(), capacity=16) == 2


def test_a_second_sweep_the_same_way_meets_nothing_of_what_does_not_fit():
    again = TileSweep(("x",), ("y",))
    assert device_units(1, 8, streaming(again), capacity=7) == 3


def test_a_second_sweep_backwards_meets_what_was_read_last():
    # Of 8 tiles the last 4 are cached; each y that is stored pushes out the one used longest ago, so 2 of them are met.
    assert device_units(1, 8, streaming(), capacity=4) == 2 + 6 / 8


def test_results_that_leave_first_push_nothing_out():
    # Of 8 tiles the last 4 are cached, and all 4 are met.
    passing = TileSweep(("x",), ("y",), backwards=True, evicts=True)
    assert device_units(1, 8, streaming(passing), capacity=4) == 2 + 4 / 8
    # Without a cache there is nothing to leave.
    assert device_units(1, 8, streaming(passing), capacity=0) == 3


def test_stores_alone_and_one_sweep_count_as_they_are():
    assert device_units(3, 8, (Programs((TileSweep(("dy", "x"), ("dx",)),), 2, 4),), capacity=1) == 3


def test_two_sweeps_of_one_launch_meet_what_fits_whatever_the_tensor_is():
    # Between the two visits of a tile lie x and y of the rest of its program's 4 tiles, and of the other program's.
    once = (Programs((FORWARD, BACKWARDS), splits=1, resident=2),)
    assert device_units(50, 4, once, capacity=16) == 2
    assert device_units(50, 4, once, capacity=4) > 2


# An independent simulation of the same plan with 4 KB tiles: units forward of ResNet-50's shapes, bf16, 50 MB of cache.
@pytest.mark.parametrize(
    ("shape", "units"),
    [((32, 64, 112, 112), 2.51), ((32, 64, 56, 56), 2.00), ((32, 512, 28, 28), 2.01), ((256, 2048, 7, 7), 2.50)],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_streaming_plan_moves_what_another_simulation_found(shape, units, channels_last):
    plan = batch_norm(shape, channels_last, 2, Device(132))
    launches = streaming(resident=132 * 4, splits=plan.splits)
    assert expected_units(plan, launches, 2, 50 << 20) == pytest.approx(units, abs=0.02)
