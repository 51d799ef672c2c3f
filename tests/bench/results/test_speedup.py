"""Speedups, bandwidth, and impossible times."""

import pytest
from scripted import Scripted, Silent, plan, raising, run, statuses

from bench.measure import cell, runner
from bench.measure.providers import Runnable
from bench.measure.timing import Timing
from bench.results.speedup import floor_us


@pytest.fixture
def gpu_clock(monkeypatch):
    """Cells that take as many microseconds as their provider's run says, by a clock that supports claims."""

    def measure_together(runs, device, **others):
        return {name: timing_of(run.microseconds) for name, run in runs.items()}

    def timing_of(us):
        low, high = 0.99 * us, 1.01 * us
        return Timing("cuda_event", us, low, high, low, high, low, samples=100, noise=0.0, stopped="noise")

    monkeypatch.setattr(cell.timing, "measure_together", measure_together)


def taking(microseconds, change=lambda out: out):
    def spoil(built, case, inputs):
        def run():
            return change(built.run())

        run.microseconds = microseconds
        return Runnable(run, lambda: change(built.outputs()))

    return spoil


def test_speedup_is_the_baselines_median_over_this_one_with_the_uncertainty_of_both(tmp_path, gpu_clock):
    base, fast = Scripted("base", taking(30.0)), Scripted("fast", taking(10.0))
    outcome, _ = run(tmp_path, plan(base, fast, baseline="base"))
    # Two medians to 1% each: 1.4% together, and a little more for what 100 samples say of their own scatter.
    found = {
        (r.provider, r.speedup, r.speedup_low and round(r.speedup_low, 2), r.speedup_high and round(r.speedup_high, 2))
        for r in outcome.records
    }
    assert found == {("fast", 3.0, 2.96, 3.05), ("base", 1.0, None, None)}


def test_bandwidth_is_the_bytes_that_must_move_over_the_time_and_its_fraction_of_the_copys(tmp_path, gpu_clock):
    outcome = runner.run(plan(Scripted(spoil=taking(10.0))), tmp_path, {"copy_gbps": 2.0}, [], Silent())
    for record in outcome.records:
        assert record.gbps == pytest.approx(record.bytes_moved * 1e-9 / 10e-6)
        assert record.roofline_fraction == pytest.approx(record.gbps / 2)
        assert record.status == "ok"


def test_the_floor_leaves_out_what_may_still_be_in_the_cache():
    # 250 MB less 50 MB, at 1.25 times 4 TB/s.
    assert floor_us(250_000_000, 50_000_000, 4000.0) == pytest.approx(40.0)
    assert floor_us(49_000_000, 50_000_000, 4000.0) == floor_us(250_000_000, 0, 4000.0) == 0.0


def test_the_gap_is_closed_where_a_call_is_as_fast_as_a_copy(tmp_path, gpu_clock):
    moved = {r.bytes_moved for r in run(tmp_path, plan(Scripted(spoil=taking(10.0))))[0].records}
    copy_us = 10.0
    described = {"copy_gbps": max(moved) / copy_us / 1e3}
    named = {"base": 30.0, "half": 20.0, "slower": 40.0}
    providers = [Scripted(name, taking(us)) for name, us in named.items()]
    outcome = runner.run(plan(*providers, baseline="base"), tmp_path, described, [], Silent())
    found = {
        (r.provider, r.gap_closed and round(r.gap_closed, 9)) for r in outcome.records if r.bytes_moved == max(moved)
    }
    assert found == {("base", None), ("half", 0.5), ("slower", -0.5)}


def test_a_time_that_the_memory_cannot_have_made_is_impossible_and_no_speedup(tmp_path, gpu_clock):
    described = {"copy_gbps": 1e-3, "gpu": {"l2_bytes": 1}}
    providers = Scripted("base", taking(1e9)), Scripted(spoil=taking(10.0))
    outcome = runner.run(plan(*providers, baseline="base"), tmp_path, described, [], Silent())
    assert {(r.status, r.speedup) for r in outcome.records if r.provider == "scripted"} == {("impossible", None)}
    assert statuses(outcome, "base") == {"ok"}


def test_a_wrong_cell_keeps_its_time_and_gets_no_speedup(tmp_path, gpu_clock):
    wrong = Scripted("wrong", taking(10.0, lambda out: {name: t * 2 for name, t in out.items()}))
    outcome, _ = run(tmp_path, plan(Scripted("base", taking(30.0)), wrong, baseline="base"))
    assert {(r.status, r.latency_us, r.speedup) for r in outcome.records if r.provider == "wrong"} == {
        ("wrong", 10.0, None)
    }


def test_no_speedup_over_a_baseline_that_has_no_time(tmp_path, gpu_clock):
    base = Scripted("base", raising(RuntimeError("boom")))
    outcome, _ = run(tmp_path, plan(base, Scripted(spoil=taking(10.0)), baseline="base"))
    assert {(r.status, r.speedup) for r in outcome.records if r.provider == "scripted"} == {("ok", None)}


def test_a_baseline_of_the_earlier_sitting_gives_the_speedup(tmp_path, gpu_clock):
    base = Scripted("base", taking(30.0))
    run(tmp_path, plan(base, baseline="base"))
    outcome, _ = run(tmp_path, plan(base, Scripted(spoil=taking(10.0)), baseline="base"))
    assert {r.speedup for r in outcome.records if r.provider == "scripted"} == {3.0}
    assert len(base.built) == 3
