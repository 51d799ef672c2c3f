"""The section that says how far the figures can be believed."""

import re

import pytest
from report_runs import page, record

from bench.report.sections import trust
from bench.results.load import load


def test_noise_is_told_provider_by_provider(run_dir):
    records = [
        record(samples=30, stopped="budget", noise=0.02),
        record(mode="bwd", samples=200, latency_us_p10=8.0, latency_us_p90=12.0),
        record(provider="torch", retaken=4, throttle="sw_power_cap"),
    ]
    ours, torch = trust.noise(load(run_dir(records)))
    assert tuple(ours[name] for name in ("provider", "cells", "least", "samples")) == ("normlib", 2, 30, 115)
    assert tuple(ours[name] for name in ("noisy", "budget", "retaken", "held")) == (1, 1, 0, 0)
    assert ours["widest"] == pytest.approx(0.4)
    assert (torch["retaken"], torch["held"]) == (4, 1)


def test_throttled_cells_and_spent_budgets_are_warned_of(run_dir):
    records = [record(throttle="sw_power_cap, hw_slowdown"), record(provider="torch", stopped="budget")]
    text = page(run_dir(records)).text
    assert "1 timed cell of 2 ran while the GPU's clocks were held down (hw_slowdown, sw_power_cap)" in text
    assert "1 timed cell of 2 ran out of time before the noise was low enough." in text


def test_the_machine_before_and_after_stands_side_by_side_and_a_change_that_matters_is_a_warning(run_dir):
    before = {"driver": "1.2.3", "temperature_c": 41, "git_dirty": False}
    folder = run_dir([record()], conditions={"before": before, "after": {**before, "driver": "4", "temperature_c": 63}})
    rows = {row["name"]: (row["before"], row["after"], row["changed"]) for row in trust.conditions(load(folder))}
    assert rows == {
        "driver": ("1.2.3", "4", True), "temperature c": ("41.00", "63.00", True), "git dirty": ("no", "no", False),
    }  # fmt: skip
    text = page(folder).section("verdict")
    assert "Not the same before and after the run: driver." in text


def test_clocks_are_drawn_over_the_run_and_held_ones_marked(run_dir):
    records = [record(axes={"tokens": n, "hidden": 8}, sm_clock_mhz=1500.0 - 400 * (n == 7)) for n in range(1, 12)]
    records[6].throttle = "sw_power_cap"
    shown = page(run_dir(records))
    assert "sm clock mhz over the run, from 1,100 to 1,980" in shown.labels
    (drawn,) = re.findall(r'id="run-sm-clock-mhz".*?</svg>', shown.html)
    assert drawn.count('class="held"') == 1
    assert "The dashed line is the limit, 1,980 MHz." in shown.section("trust")


def test_a_long_run_keeps_the_lowest_clock(run_dir, monkeypatch):
    monkeypatch.setattr("bench.report.figures.clocks.POINTS_DRAWN", 4)
    clocks = [1500.0] * 30
    clocks[17] = 900.0
    records = [record(axes={"tokens": n + 1, "hidden": 8}, sm_clock_mhz=clock) for n, clock in enumerate(clocks)]
    assert "sm clock mhz over the run, from 900 to 1,980" in page(run_dir(records)).labels


def test_a_run_that_recorded_nothing_of_the_kind_says_so(run_dir):
    folder = run_dir([record(clock="interpreter")], clock="interpreter")
    assert trust.noise(load(folder)) == [] and trust.conditions(load(folder)) == []
    assert "has not recorded the state of the machine" in page(folder).section("trust")
