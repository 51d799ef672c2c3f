"""False alarms and misses of `bench.compare` over many runs, each made up from a seed."""

from pathlib import Path

import numpy as np
import pytest
from made_up_runs import record

from bench.compare.comparison import FASTER, SLOWER
from bench.compare.judging import judge
from bench.results.intervals import MOST, of_medians, of_samples
from bench.results.load import LoadedRun

PROVIDERS = ("normlib", "torch", "torch_compile")
CASES, TRIALS = 10, 100


RECORDS = [record(case, name, np.ones(20)) for case in range(CASES) for name in PROVIDERS]


def drawn(dice, drift, slow=1.0):
    """A run with 20 to 200 samples a cell: noise of 1%, one in twenty up to fivefold, and the drift of the case."""
    shared = {one.case_key: dice.normal(0.0, drift) for one in RECORDS}
    run = LoadedRun(Path("run"), {}, RECORDS)
    vars(run)["samples"] = taken = {}  # in the place of what would be read from the folder
    for one in RECORDS:
        count = dice.integers(20, 201)
        wild = np.where(dice.random(count) < 0.05, dice.uniform(1.2, 5.0, count), 1.0)
        factor = slow if one.provider == "normlib" else 1.0
        taken[one.key] = 50.0 * factor * np.exp(shared[one.case_key] + dice.normal(0.0, 0.01, count)) * wild
    return run


@pytest.mark.parametrize("drift", [0.0, 0.007])
def test_in_a_hundred_runs_a_planted_slowdown_is_found_and_nothing_else(drift):
    """At most 5 trials with a false alarm, and at most 5 in which one cell of the slower provider is missed."""
    false, missed = 0, 0
    planted = {one.key for one in RECORDS if one.provider == "normlib"}
    for seed in range(TRIALS):
        dice = np.random.default_rng(seed)
        found = judge(drawn(dice, drift), drawn(dice, drift, 1.05))
        slower = {pair.key for pair in found.having(SLOWER)}
        false += bool(slower - planted or found.having(FASTER))
        missed += bool(planted - slower)
    assert false <= 5 and missed <= 5, (false, missed)


def test_noise_and_drift_alone_raise_no_alarm_in_a_hundred_runs():
    alarms = 0
    for seed in range(TRIALS):
        dice = np.random.default_rng(1000 + seed)
        alarms += bool({SLOWER, FASTER} & set(judge(drawn(dice, 0.02), drawn(dice, 0.02)).said))
    assert alarms <= 5, alarms


def test_an_interval_misses_the_truth_as_seldom_as_it_says():
    """At the level of five cells together, 1 in 500 each: in 2000 draws some 4, and 12 would be one chance in 1000."""
    dice = np.random.default_rng(5)
    missed = 0
    for _ in range(2000):
        a, b = (np.exp(dice.standard_t(3, 20) * 0.02) for _ in range(2))
        change = of_samples(a, b)
        assert change
        low, high = change.interval(5)
        missed += not low < 0.0 < high
    assert missed <= 12, missed


@pytest.mark.parametrize(("few", "many"), [(12, 12), (10, 50), (20, 20)])
def test_an_interval_is_honest_where_one_run_scatters_by_half_and_the_other_by_a_hundredth(few, many):
    """At 1 in 100: in 2000 draws some 20, and 40 would be one chance in 10,000; ranks of like samples miss hundreds."""
    dice = np.random.default_rng(11)
    missed = {"a": 0, "b": 0}
    for _ in range(2000):
        wild, calm = np.exp(0.5 * dice.standard_normal(few)), np.exp(0.01 * dice.standard_normal(many))
        for scatters, change in (("a", of_samples(wild, calm)), ("b", of_samples(calm, wild))):
            low, high = change.interval(1)
            missed[scatters] += not low < 0.0 < high
    assert max(missed.values()) <= 40, missed


def test_samples_above_the_most_are_batched_and_say_the_same():
    dice = np.random.default_rng(7)
    a, b = np.exp(dice.normal(3.0, 0.02, 20 * MOST + 7)), np.exp(dice.normal(3.05, 0.02, 20 * MOST + 7))
    change = of_samples(a, b)
    assert change and change.estimate == pytest.approx(0.05, abs=4 * change.error)
    assert change.error < 0.001 and change.freedom < 2 * MOST
    # What neighbours share is no chance that more samples would even out.
    waves = np.exp(0.1 * np.sin(np.arange(20 * MOST) / 100))
    change = of_samples(waves, waves)
    assert change and change.error > 0.003


def test_two_medians_with_their_intervals_give_the_ratio_and_its_error():
    change = of_medians((9.9, 10.0, 10.1), (10.4, 10.5, 10.6), (100, 100))
    low, high = change.interval(1)
    assert change.estimate == pytest.approx(np.log(1.05))
    assert 0.025 < low < 0.049 < high < 0.075
