"""A profile is told apart into calls only where there is no doubt which launch belongs to which."""

from __future__ import annotations

import pytest
import torch

from bench.measure.timing import launches
from bench.measure.timing.clock import Gpu
from bench.measure.timing.launches import Launch, Unclear, of_one_call

FLUSH = Launch("Memset", 40.0)


def profile(*calls):
    """The launches of calls given as {kernel: microseconds}, a flush before each."""
    return [launch for call in calls for launch in (FLUSH, *(Launch(*item) for item in call.items()))]


def test_kernels_are_added_up_and_the_flush_is_left_out():
    assert of_one_call(profile({"stats": 3.0, "normalize": 5.0}, {"stats": 3.0, "normalize": 5.0}), 2) == (8.0, 2)


def test_the_time_is_the_median_over_the_calls():
    assert of_one_call(profile({"k": 3.0}, {"k": 90.0}, {"k": 4.0}), 3) == (4.0, 1)


def test_a_call_that_launches_nothing_is_no_mistake():
    assert of_one_call(profile({}, {}, {}), 3) == (0.0, 0)


def test_a_call_may_itself_begin_with_what_the_flush_is_made_of():
    call = [FLUSH, Launch("Memset", 1.0), Launch("k", 5.0)]
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
@pytest.mark.chance
def test_a_real_profile_counts_two_kernels_again_and_again():
    device = torch.device("cuda")
    gpu, x = Gpu(device), torch.randn(1 << 22, device=device)
    x.mul(2).add(1)
    for _ in range(3):
        kernel_us, count = of_one_call(launches.launched(gpu, lambda: x.mul(2).add(1), 5), 5)
        assert count == 2
        assert 1 < kernel_us < 1000
