"""Lower bounds of device memory traffic behind a cache, where the answer is known by hand."""

from math import prod

import pytest

from bench.audit import bounds
from bench.audit.cache import Programs, expected_units
from bench.audit.calls import calls
from normlib.kernels.batch_norm.plan import batch_norm
from normlib.kernels.plan import Device
from normlib.kernels.traffic import TileSweep

H200, CACHE = Device(132, l2=50 << 20, cooperative=True), 50 << 20
FORWARD = (TileSweep(("x",)), TileSweep(("x",), ("y",), backwards=True, evicts=True))
BACKWARD = (TileSweep(("dy", "x")), TileSweep(("dy", "x"), ("dx",), backwards=True, evicts=True))
STEM = (32, 64, 112, 112)  # 49 MiB in 16 bits
RESNET50 = sorted({call.shape for call in calls(["batch_norm"], ["resnet50"])})


@pytest.mark.parametrize(("sweeps", "once"), [(FORWARD, 2), (BACKWARD, 3), (FORWARD[1:], 2)])
def test_every_activation_once_is_the_floor(sweeps, once):
    assert bounds.once_units(sweeps) == once


# Channels-last 16 channels share a sector: of 256 images 98 MiB of x wait beside 50. In a run of one channel 6.
@pytest.mark.parametrize(
    ("shape", "channels_last", "sweeps", "least"),
    [
        (STEM, True, BACKWARD, 3),
        ((256, *STEM[1:]), True, FORWARD, 2 + 48 / 98),
        ((256, *STEM[1:]), True, BACKWARD, 3 + 2 * 146 / 196),
        ((256, *STEM[1:]), False, BACKWARD, 3),
        ((256, 8, 112, 112), True, BACKWARD, 3 + 2 * 48 / 98),  # half a sector, and all that there is
        (STEM, True, FORWARD[1:], 2),
    ],
)
def test_what_waits_beyond_the_cache_comes_twice(shape, channels_last, sweeps, least):
    plan = batch_norm(shape, channels_last, 2, H200)
    assert bounds.least_units(plan, sweeps, 2, CACHE) == pytest.approx(least)


@pytest.mark.parametrize(("sweeps", "tensors"), [(FORWARD, 1), (BACKWARD, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", RESNET50)
def test_resnet50s_norms_that_fit_in_an_h200s_cache_move_everything_once(shape, channels_last, sweeps, tensors):
    plan = batch_norm(shape, channels_last, 2, H200)
    splits = plan.splits, plan.output_splits
    made = [Programs((sweep,), n, 4 * 132) for sweep, n in zip(sweeps, splits, strict=True)]
    once, read = bounds.once_units(sweeps), tensors * 2 * prod(shape)
    units = expected_units(plan, made, 2, CACHE)
    assert once <= units <= (bounds.CLOSE if read < CACHE // 2 else 2) * once


def test_a_plan_above_the_floor_says_what_keeps_it_there():
    stem = batch_norm((256, *STEM[1:]), True, 2, H200)
    assert "no plan does better" in bounds.reason(stem, 4.49, 4.49)
    assert "outgrows the cache" in bounds.reason(stem, 4.87, 4.49)
