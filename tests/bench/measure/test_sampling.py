"""Samples are taken in turns until they are quiet, and what they say is not said by their outliers."""

from __future__ import annotations

import random
import statistics
from math import sqrt

import pytest

from bench.measure import sampling
from bench.measure.sampling import (
    LEAST_BLOCKS,
    LEAST_SAMPLES,
    NOISE,
    RETAKES,
    STEADY_SAMPLES,
    SamplingAborted,
    StoppingRule,
    side_by_side,
)
from bench.measure.telemetry import Reading

RULE = StoppingRule(budget_s=1.0)
COOL, HOT = Reading(), Reading(reasons=frozenset({"hw_thermal_slowdown"}))


def gaussian(spread, seed=0, mean=10.0):
    stream = random.Random(seed)
    while True:
        yield stream.gauss(mean, spread * mean)


def block_of(samples, count=10):
    return lambda: [next(samples) for _ in range(count)]


def sampled(samples, rule=RULE, count=10):
    """One rival's series, each of whose blocks takes a hundredth of a virtual second."""
    return side_by_side({"a": block_of(samples, count)}, rule, clock=ticking(0.01))["a"]


def ticking(step):
    time = iter(range(10**9))
    return lambda: next(time) * step


# Conover, Practical Nonparametric Statistics: 95% intervals of the median have ranks 6 and 15 of 20, 40 and 61 of 100.
@pytest.mark.parametrize("n, low, high", [(6, 1, 6), (20, 6, 15), (100, 40, 61), (5, 1, 5), (1, 1, 1)])
def test_the_medians_interval_has_the_ranks_of_the_binomial_table(n, low, high):
    samples = list(range(1, n + 1))
    random.Random(n).shuffle(samples)
    assert sampling.median_interval(samples) == (low, high)


def test_the_medians_interval_holds_it_in_95_percent_of_all_cases_whatever_the_distribution():
    stream, held = random.Random(0), 0
    for _ in range(2000):
        low, high = sampling.median_interval([stream.lognormvariate(0, 2) for _ in range(25)])
        held += low <= 1.0 <= high
    # The binomial of 25 gives 95.7%; three standard errors of 2000 draws are 1.4%.
    assert 0.943 <= held / 2000 <= 0.971


def test_an_interval_of_thousands_of_samples_is_no_overflow():
    low, high = sampling.median_interval(range(5000))
    assert 2420 < low < 2499 < high < 2580


def test_noise_is_the_standard_error_of_the_mean_over_the_mean():
    assert sampling.noise([9.0, 11.0]) == pytest.approx(sqrt(2) / sqrt(2) / 10)
    assert sampling.noise([10.0] * 5) == 0
    assert sampling.noise([10.0]) is None
    assert sampling.noise([0.0, 0.0]) is None


def test_a_quiet_rival_still_gives_enough_samples_from_enough_blocks():
    taken = sampled(gaussian(0.001), count=1)
    assert (taken.stopped, len(taken.samples)) == ("noise", LEAST_SAMPLES)
    taken = sampled(gaussian(0.001), count=LEAST_SAMPLES)
    assert (taken.stopped, taken.blocks) == ("noise", LEAST_BLOCKS)


def test_sampling_ends_when_the_noise_is_low_enough():
    taken = sampled(gaussian(0.03))
    assert taken.stopped == "noise"
    assert sampling.noise(taken.samples) <= NOISE
    assert sampling.noise(taken.samples[:-10]) > NOISE


def test_noise_that_only_needs_more_samples_is_not_given_up():
    stops = {sampled(gaussian(0.2, seed), StoppingRule(budget_s=1e9)).stopped for seed in range(20)}
    assert stops == {"noise"}


def test_noise_that_no_longer_falls_ends_the_sampling():
    climbing = (10.0 * 1.01**sample for sample in range(10**6))
    taken = sampled(climbing, StoppingRule(budget_s=1e9))
    assert taken.stopped == "steady"
    assert len(taken.samples) >= STEADY_SAMPLES


def test_the_budget_ends_what_is_still_noisy():
    taken = sampled(gaussian(0.5), StoppingRule(budget_s=0.1))
    assert taken.stopped == "budget"
    assert taken.spent_s == pytest.approx(0.1)
    assert sampled(gaussian(0.5), StoppingRule(budget_s=1e9, most_samples=30)).stopped == "budget"


def test_a_block_longer_than_the_budget_is_taken_once():
    taken = side_by_side({"a": lambda: [1.0]}, RULE, clock=ticking(5.0))["a"]
    assert (taken.stopped, taken.samples) == ("budget", [1.0])


def test_outliers_move_neither_the_median_nor_its_interval():
    stream = gaussian(0.01)
    clean = [next(stream) for _ in range(200)]
    dirty = clean[:190] + [1000.0] * 10
    low, high = sampling.median_interval(dirty)
    assert statistics.median(dirty) == pytest.approx(statistics.median(clean), rel=0.002)
    assert high - low < 0.1


def turns(seed, names="abc", rounds=6):
    told = []
    rule = StoppingRule(budget_s=1e9, most_samples=rounds)
    side_by_side({name: lambda: [1.0] for name in names}, rule, seed=seed, began=told.append)
    return ["".join(told[i : i + len(names)]) for i in range(0, len(told), len(names))]


def test_every_round_has_each_rival_once_in_a_new_order():
    rounds = turns(seed=0)
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 2


def test_the_seed_settles_the_order():
    assert turns(seed=1) == turns(seed=1) != turns(seed=2)


def test_a_rival_that_is_done_is_left_out_of_later_rounds():
    blocks = {"quiet": block_of(gaussian(0.0)), "noisy": block_of(gaussian(0.1))}
    taken = side_by_side(blocks, StoppingRule(budget_s=1e9))
    assert len(taken["quiet"].samples) == LEAST_BLOCKS * 10 < len(taken["noisy"].samples)


def test_each_name_is_told_before_its_block_and_outside_of_its_time():
    log = []
    blocks = {name: lambda name=name: log.append(f"block {name}") or [1.0] for name in "ab"}
    side_by_side(
        blocks,
        StoppingRule(budget_s=1e9, most_samples=2),
        began=lambda name: log.append(f"began {name}"),
        clock=lambda: float(log.append("clock") or 0),
    )
    for i, entry in enumerate(log):
        if entry.startswith("block"):
            assert log[i - 2 : i + 2] == [f"began {entry[-1]}", "clock", entry, "clock"]


def test_what_raises_is_out_and_the_others_go_on():
    error = ValueError("boom")
    blocks = {"good": block_of(gaussian(0.0)), "bad": failing_at(3, error), "fine": block_of(gaussian(0.0))}
    taken = side_by_side(blocks, RULE)
    assert list(taken) == ["good", "bad", "fine"]
    assert taken["bad"] is error
    assert taken["good"].stopped == taken["fine"].stopped == "noise"


def failing_at(nth, error):
    calls = iter(range(10**6))

    def block():
        if next(calls) >= nth:
            raise error
        return [1.0]

    return block


def test_a_lost_device_ends_it_and_blames_the_last():
    first, last = ValueError("first"), RuntimeError("last")
    blocks = {"lost": failing_at(4, last), "good": block_of(gaussian(0.5)), "early": failing_at(1, first)}
    answers = iter([True, False])
    with pytest.raises(SamplingAborted) as lost:
        side_by_side(blocks, RULE, alive=lambda: next(answers))
    assert list(lost.value.errors.items()) == [("early", first), ("lost", last)]


def test_ctrl_c_passes_through():
    with pytest.raises(KeyboardInterrupt):
        side_by_side({"a": failing_at(1, KeyboardInterrupt())}, RULE)


def watched(readings, spread=0.0):
    """One rival's series under these readings, the last of which stays; and how long it rested each time."""
    readings, rests = iter([*readings, *[readings[-1]] * 100]), []
    taken = side_by_side(
        {"a": block_of(gaussian(spread))}, RULE, watch=lambda: next(readings), rest=rests.append, clock=ticking(0.001)
    )
    return taken["a"], rests


def test_a_block_of_a_throttled_gpu_is_thrown_away_and_taken_again_after_a_rest():
    taken, rests = watched([COOL, COOL, HOT, COOL])
    assert (taken.retaken, len(taken.samples), len(rests)) == (10, LEAST_BLOCKS * 10, 1)
    assert taken.reasons == set()


def test_throttling_before_a_block_counts_as_well_as_after_it():
    taken, _ = watched([HOT, COOL])
    assert taken.retaken == 10


def test_throttling_that_stays_is_kept_and_told():
    taken, rests = watched([HOT])
    assert taken.retaken == RETAKES * 10
    assert rests == [0.05, 0.1, 0.2]
    assert taken.reasons == {"hw_thermal_slowdown"}
    assert taken.stopped == "noise"


def test_a_reason_that_does_not_pass_is_told_and_nothing_is_taken_again():
    taken, rests = watched([Reading(reasons=frozenset({"sync_boost"}))])
    assert (taken.retaken, rests, taken.reasons) == (0, [], {"sync_boost"})


def test_the_gpu_is_looked_at_after_every_block_that_was_kept():
    taken, _ = watched([COOL])
    assert len(taken.readings) == taken.blocks


@pytest.mark.chance
def test_samples_can_be_read_where_there_is_no_torch():
    import subprocess
    import sys

    code = "import sys, bench.measure.sampling; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
